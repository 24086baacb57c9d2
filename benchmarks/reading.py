"""What reading through a pot costs: over time, beside its parts, beside a full cache, and in variants.

    python benchmarks/reading.py flat    --out FILE    speed late in a text beside early; memory by length
    python benchmarks/reading.py cheap   --out FILE    a cycle beside its parts alone, and where its time goes
    python benchmarks/reading.py full    --out FILE    whole texts beside transformers' own full cache
    python benchmarks/reading.py decode  --out FILE    seconds per token beside plain `generate`, at the same length
    python benchmarks/reading.py start   --out FILE    starting, importing, loading, in fresh processes
    python benchmarks/reading.py speed   --out FILE    dtypes, threads, chunks, int8, compiled, each in a fresh process
    python benchmarks/reading.py batch   --out FILE    what batches of questions or texts could gain, at most
    python benchmarks/reading.py many    --out FILE    questions asked with `ask_many` beside one after another
    python benchmarks/reading.py report  --out FILE    tables of what FILE holds

Rows that FILE holds for the same model, document, settings, release and machine are not measured again. Whatever stands
in one ratio was timed in one run, in turns: a piece of the one, a piece of the other, and so on. What is read is
--document, repeated as often as needed: time depends on how many tokens there are, not on what they say.
Shapes: `K` KV heads, `D` head dim, `B` batch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from reading_batches import batch, many, questions_beside
from reading_report import REPORTS, tables
from reading_tools import (
    Clock,
    Reading,
    Row,
    Rows,
    Stamps,
    Subject,
    beside,
    chunks,
    decode_ours,
    load_rows,
    machine,
    numbers,
    plain,
    plain_forward,
    plain_reading,
    seconds_of,
)  # fmt: skip
from reading_variants import Variant, speed, variants
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from infinipot_llm import Document, InfiniPot, PotConfig, __version__
from infinipot_llm.answering.decode import end_ids
from infinipot_llm.models.catalogue import DEFAULT_MODEL
from infinipot_llm.models.resources import NOT_TOLD, memory_taken
from infinipot_llm.pot.novelty import surprise
from infinipot_llm.pot.reader import Reader

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "documents" / "hollin_valley.md"


# --- flat ---


def flat_speed(subject: Subject, tokens: int) -> Row:
    """Compare cycles in the last tenth of a text with cycles at its beginning, in turns.

    The first reading goes on to the last tenth; then a second one begins, and their cycles alternate. Only whole cycles
    count; the first filling of the pot, and what is left behind the last cycle, do not.
    """
    divided = subject.plan()
    freed = divided.room - divided.kept
    cycles = (tokens - (divided.room - len(subject.prefix)) - 1) // freed
    if cycles < 2:
        raise SystemExit(
            f"{tokens} tokens make {max(cycles, 0)} whole cycles: give more --tokens, or a lower --budget."
        )
    tenth = max(1, cycles // 10)
    late = Reading(subject, tokens)
    late.step()
    alone = [late.step() for _ in range(cycles - tenth)]
    early = Reading(subject, tokens)
    early.step()
    pairs = [(late.step(), early.step()) for _ in range(tenth)]
    late.close()
    early.close()
    both = beside([p[1] for p in pairs], [p[0] for p in pairs])  # seconds early to late: tokens/s late to early
    bounds = np.linspace(0, len(alone), min(9, len(alone)) + 1).astype(int)
    by_tenth = [freed / float(np.mean(alone[a:b])) for a, b in pairwise(bounds)]
    return {
        "cycles": cycles,
        "tokens_per_cycle": freed,
        "cycles_compared": both["count"],
        "early_tokens_per_second": round(freed / both["first"], 1),
        "late_tokens_per_second": round(freed / both["second"], 1),
        "late_to_early": both["ratio"],
        "lowest": both["lowest"],
        "highest": both["highest"],
        "tokens_per_second_by_tenth": [round(speed, 1) for speed in by_tenth],
    }


def flat_memory(llm: InfiniPot, document: Document, tokens: int) -> Row:
    """Read so many tokens as a user does, shelf included; note the memory before (weights loaded) and its peak."""
    source = llm.form.codec.document([document])
    times = -(-tokens // len(source))
    whole = Document.from_text("\n\n".join([document.text] * times))
    cut = llm.form.codec.document([whole])
    text = Document.from_text(whole.text[: int(cut.ends[min(tokens, len(cut)) - 1])])
    del whole, cut
    llm.adapter.forward(torch.from_numpy(source.ids[: llm.config.chunk].astype("int64")), llm.adapter.new_cache(1024))
    with memory_taken(torch.device("cpu")) as taken:  # what a GPU takes: gpu_reading.py
        memory = llm.read(text)
    if taken.before is None or taken.peak is None:
        raise SystemExit(NOT_TOLD)
    return {
        "tokens_read": memory.stats.tokens_read,
        "cycles": memory.stats.cycles,
        "tokens_per_second": round(memory.stats.tokens_per_second, 1),
        "rss_anon_before_mb": round(taken.before / 1e6, 1),
        "rss_anon_peak_mb": round(taken.peak / 1e6, 1),
    }


# --- cheap ---


def cheap(subject: Subject, rounds: int) -> Row:
    """Time cycles of a reading, in turns with their parts alone.

    A cycle scores and distils a full pot, then reads as many tokens as it freed. The parts alone are the same chunks
    forwarded at the same lengths, the output head over the same tokens in the same slices, and the catalysts forwarded
    over a full pot: once through slots, once through transformers' own model and cache (whose appending copies the
    cache). The parts know nothing of scores, gathering and records.
    """
    adapter, divided = subject.adapter, subject.plan()
    policy = Reader(adapter, subject.config).policy
    freed = divided.room - divided.kept
    reading = Reading(subject, divided.room + (rounds + 3) * freed)
    reading.step()
    reading.step()  # one cycle to warm up
    ids = torch.from_numpy(np.resize(subject.source, freed).astype("int64"))
    prompts = [torch.tensor(c) for c in subject.catalysts] if policy.needs.catalyst else []
    start, full = subject.states(divided.kept), subject.states(divided.room)
    at_kept, at_room = subject.filled(divided.kept), subject.filled(divided.room)
    clock = Clock()
    times: dict[str, list[float]] = defaultdict(list)

    def read(forward: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Seconds of the forwards of a cycle's chunks, and of the output head."""
        forwards = heads = 0.0
        for a, b in chunks(0, freed, subject.config.chunk):
            taken, hidden = seconds_of(adapter, forward, ids[a:b])
            forwards += taken
            if policy.needs.novelty:
                heads += seconds_of(adapter, surprise, adapter, hidden, ids[a:b])[0]
        return forwards, heads

    for _ in range(rounds):
        with clock.watching(adapter, policy):
            times["cycle"].append(reading.step())
        with at_kept.scratch():
            forwards, heads = read(partial(adapter.forward, cache=at_kept.cache))
        prompted = 0.0
        for prompt in prompts:
            with at_room.scratch():
                prompted += seconds_of(adapter, adapter.forward, prompt, at_room.cache)[0]
        times["slots"].append(forwards + heads + prompted)
        with plain(adapter):
            forwards, heads = read(partial(plain_forward, adapter, cache=subject.plain_cache(start)))
            prompted = 0.0
            for prompt in prompts:
                prompted += seconds_of(adapter, plain_forward, adapter, prompt, subject.plain_cache(full))[0]
        times["plain"].append(forwards + heads + prompted)
        for name, taken in (("forward", forwards), ("head", heads), ("catalyst", prompted)):
            times[f"plain {name}"].append(taken)
    reading.close()
    whole = sum(times["cycle"])
    shares = {name: round(taken / whole, 4) for name, taken in clock.seconds.items()}
    shares["bookkeeping"] = round(1.0 - sum(clock.seconds.values()) / whole, 4)
    return {
        "tokens_per_cycle": freed,
        "tokens_per_second": round(freed / median(times["cycle"]), 1),
        "beside_plain": beside(times["cycle"], times["plain"]),
        "beside_slots": beside(times["cycle"], times["slots"]),
        "plain_parts_seconds": {n: round(median(times[f"plain {n}"]), 3) for n in ("forward", "head", "catalyst")},
        "shares_of_cycle": shares,
    }


# --- full ---


def full(subject: Subject, tokens: int) -> Row:
    """Read a whole text through the pot, without novelty too, and with transformers' full cache, in turns.

    The full cache is measured to the end, also behind the positions that the model was trained on: its time counts.
    """
    without = replace(subject, config=replace(subject.config, novelty_share=0.0))
    divided = subject.plan()
    first, freed = divided.room - len(subject.prefix), divided.room - divided.kept
    ends = range(first, tokens, freed)
    works = {
        "pot": Reading(subject, tokens),
        "pot_without_novelty": Reading(without, tokens),
        "full": plain_reading(subject, tokens, ends),
    }
    seconds, pieces = dict.fromkeys(works, 0.0), dict.fromkeys(works, 0)
    while not all(work.over for work in works.values()):
        for name, work in works.items():
            if work.over:
                continue
            with plain(subject.adapter) if name == "full" else ExitStack():
                seconds[name] += work.step()
            pieces[name] += 1
    return {
        "pieces": pieces,
        "seconds": {name: round(taken, 2) for name, taken in seconds.items()},
        "full_to_pot": round(seconds["full"] / seconds["pot"], 3),
        "full_to_pot_without_novelty": round(seconds["full"] / seconds["pot_without_novelty"], 3),
        "novelty_to_without": round(seconds["pot"] / seconds["pot_without_novelty"], 3),
    }


# --- decode ---


def decode_plain(
    subject: Subject, states: Sequence[tuple[Tensor, Tensor]], question: Sequence[int], new: int
) -> list[float]:
    """Return the same of `generate` over transformers' own cache, the adapter being closed."""
    adapter, held = subject.adapter, states[0][0].shape[2]
    ends = end_ids(adapter, subject.codec)
    stamps = Stamps(ends)
    with patch.object(adapter.model, "generation_config", GenerationConfig()):  # as `decode`: none of the model's own
        adapter.model.generate(
            input_ids=torch.tensor([[0] * held + list(question)], device=adapter.device),
            attention_mask=torch.ones((1, held + len(question)), dtype=torch.long, device=adapter.device),
            past_key_values=subject.plain_cache(states),
            generation_config=GenerationConfig(
                max_new_tokens=new, do_sample=False, eos_token_id=ends or None, pad_token_id=0
            ),
            logits_processor=LogitsProcessorList([stamps]),
        )
    return stamps.between


def decoding(subject: Subject, new: int, rounds: int) -> Row:
    """Time tokens of an answer over a full pot and over a plain cache of the same length, answers in turns."""
    question = subject.catalysts[0]
    held = subject.config.budget - len(question) - new
    if held < 1 or new < 2:
        raise SystemExit(f"a budget of {subject.config.budget} has no room for {new} tokens of an answer, at least 2.")
    pot, states = subject.filled(held), subject.states(held)
    ours, theirs = [], []
    for number in range(rounds + 1):
        first = median(decode_ours(subject, pot, question, new))
        with plain(subject.adapter):
            second = median(decode_plain(subject, states, question, new))
        if number:  # the first round warms up
            ours.append(first)
            theirs.append(second)
    return {"slots": held, "tokens_each": new - 1, "seconds_per_token": beside(ours, theirs)}


# --- start ---


LOADING = """
import sys, time
started = time.perf_counter()
from infinipot_llm.models.load import load_model
imported = time.perf_counter()
load_model(sys.argv[1], dtype=sys.argv[2])
print(imported - started, time.perf_counter() - imported)
"""


def start(model: str, dtype: str, rounds: int) -> Row:
    """Time fresh processes from start to end, in turns, and loading inside its process; the best of each."""
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import torch, transformers": [sys.executable, "-c", "import torch, transformers"],
        "import infinipot_llm": [sys.executable, "-c", "import infinipot_llm"],
        "infinipot --help": [sys.executable, "-m", "infinipot_llm", "--help"],
        "process that loads the model": [sys.executable, "-c", LOADING, model, dtype],
    }
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, command in commands.items():
            started = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            taken[name].append(time.perf_counter() - started)
            if model in command:
                imports, loads = map(float, done.stdout.split()[-2:])
                taken["  of it: imports"].append(imports)
                taken["  of it: load_model"].append(loads)
    return {"rounds": rounds, "best_seconds": {name: round(min(times), 3) for name, times in taken.items()}}


# --- command line ---


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*REPORTS, "report"])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--tokens", type=int, help="flat: 100,000; speed: 8,000")
    parser.add_argument("--lengths", type=numbers, help="flat: memory at 10,000 and --tokens; full: 8K, 16K, 32K, 64K")
    parser.add_argument("--budget", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--rounds", type=int, help="cheap: 8 cycles; decode, start, batch: 5; many: 3; speed: 2")
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--sizes", type=numbers, default=[2, 4, 8], help="batch, many: rows of a batch")
    parser.add_argument("--only", help="speed: variants whose names hold this, beside the first")
    parser.add_argument("--limit", type=float, default=300.0, help="speed: most seconds of one reading")
    parser.add_argument("--document", type=Path, default=SAMPLE)
    parser.add_argument("--out", type=Path, help="JSON lines; rows are appended")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def opened(args: argparse.Namespace) -> tuple[InfiniPot, Document]:
    torch.set_num_threads(args.threads)
    config = PotConfig(budget=args.budget, chunk=args.chunk, max_new_tokens=min(256, max(args.new, args.budget // 4)))
    llm = InfiniPot.from_pretrained(args.model, config=config, device=args.device, dtype=args.dtype)
    return llm, Document.from_text(args.document.read_text(encoding="utf-8"))


def child(args: argparse.Namespace, **changed: Any) -> Row:
    """Run one measurement of this script in a fresh process; returns what it found."""
    given = {**vars(args), **changed, "out": None, "document": str(args.document), "child": None}
    command = [sys.executable, __file__, args.what, "--child", json.dumps(given)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"a measurement in a process of its own failed ({done.returncode}).")
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def run_child(given: str) -> Row:
    args = argparse.Namespace(**json.loads(given))
    args.document = Path(args.document)
    llm, document = opened(args)
    if args.what == "flat":
        return flat_memory(llm, document, args.tokens)
    llm.config = replace(llm.config, novelty_share=args.novelty_share)
    return speed(Subject.of(llm, document), args.tokens, args.new, args.change, args.limit)


def main(argv: Sequence[str] | None = None) -> None:
    args = options().parse_args(argv)
    if args.child:
        print(json.dumps(run_child(args.child)))
        return
    if args.what == "report":
        if args.out is None or not args.out.exists():
            raise SystemExit("report needs --out with the file that rows were written to.")
        print("\n".join(tables(load_rows(args.out))))
        return
    fixed = {"device": args.device, "threads": args.threads, "budget": args.budget, "chunk": args.chunk}
    if not args.document.is_file():
        raise SystemExit(f"there is no document {args.document}: give --document a text file.")
    content = hashlib.sha256(args.document.read_bytes()).hexdigest()[:8]
    read = {"document": f"{args.document.name} {content}", "release": __version__}
    common = {"model": Path(args.model).name, **read, **fixed, **machine()}
    if args.what == "start":
        rounds = args.rounds or 5
        key = {"measured": "start", "dtype": args.dtype}
        Rows(args.out, common).measure(key, start, args.model, args.dtype, rounds)
        return
    if args.what == "speed":
        run_speed(args, common)
        return
    llm, document = opened(args)
    subject = Subject.of(llm, document)
    rows = Rows(args.out, {**common, "dtype": str(llm.adapter.dtype).removeprefix("torch.")})
    if args.what == "flat":
        tokens = args.tokens or 100_000
        rows.measure({"measured": "flat", "part": "speed", "tokens": tokens}, flat_speed, subject, tokens)
        del llm, subject  # two models in memory are not needed
        for length in args.lengths or sorted({min(10_000, tokens), tokens}):
            key = {"measured": "flat", "part": "memory", "tokens": length}
            rows.measure(key, partial(child, tokens=length), args)
    elif args.what == "cheap":
        for share in (subject.config.novelty_share, 0.0):
            chosen = replace(subject, config=replace(subject.config, novelty_share=share))
            rows.measure({"measured": "cheap", "novelty": share > 0.0}, cheap, chosen, args.rounds or 8)
    elif args.what == "full":
        for length in args.lengths or [8192, 16384, 32768, 65536]:
            rows.measure({"measured": "full", "tokens": length}, full, subject, length)
    elif args.what == "decode":
        rows.measure({"measured": "decode", "new": args.new}, decoding, subject, args.new, args.rounds or 5)
    elif args.what == "batch":
        for size in args.sizes:
            key = {"measured": "batch", "size": size, "new": args.new}
            rows.measure(key, batch, subject, size, args.new, args.rounds or 5)
    elif args.what == "many":
        asked = [questions_beside(args.document, size) for size in args.sizes]
        memory = llm.read(document)
        for questions, size in zip(asked, args.sizes, strict=True):
            key = {"measured": "many", "size": size, "new": args.new}
            rows.measure(key, many, memory, questions, size, args.new, args.rounds or 3)


def run_speed(args: argparse.Namespace, common: Row) -> None:
    """Run all variants round by round, each in a fresh process."""
    dtype = "float32" if args.dtype == "auto" else args.dtype
    tokens = args.tokens or 8000
    cores = common["cores"]
    base = Variant(
        f"{dtype}, {args.threads} threads, chunks of {args.chunk}",
        dtype, args.threads, args.chunk, PotConfig().novelty_share,
    )  # fmt: skip
    wanted = [v for v in variants(base, cores) if v is base or args.only is None or args.only in v.name]
    rows = Rows(args.out, {**common, "dtype": dtype})
    for number in range(args.rounds or 2):
        for v in wanted:
            key = {"measured": "speed", "variant": v.name, "round": number, "tokens": tokens}
            settings = {name: value for name, value in asdict(v).items() if name != "name"}
            rows.measure(key, partial(child, tokens=tokens, **settings), args)


if __name__ == "__main__":
    main()
