"""A million tokens through a pot on a GPU: one command, random weights, nothing is downloaded.

    python benchmarks/gpu_reading.py --out FILE                 the shape of Llama 3.1 8B in bf16, pots of 4K and 16K
    python benchmarks/gpu_reading.py --device cpu --tiny        the same in seconds on a CPU, to see that it runs

It needs reading_tools.py beside it, and nothing else of this folder.

Time does not depend on what weights and tokens say. For each pot: tokens/s over the text; what share of the device's
own matrix product that is, timed in the same run (operations that the model needs: masked ones are not counted); peak
memory above the weights; calls that made the CPU wait for the GPU, and where they stand; and tokens/s of decoding.
The memory's shelf is not written here: that is a matter of disk and CPU.
Shapes: `C` tokens of a chunk, `S` slots held.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from reading_tools import Row, Stamps, machine, numbers, settle
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from infinipot_llm import Document, PotConfig
from infinipot_llm.answering.decode import Sampling, decode
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec, TokenizedText
from infinipot_llm.pot.plan import plan
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader, ReadStats

LLAMA_8B: Row = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
TINY: Row = {
    **LLAMA_8B, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 264,
}  # fmt: skip
PREFIX, CATALYSTS, RESERVE = 24, (40, 40, 40, 40), 384
"""Tokens before the text and of each catalyst, and slots left free, about as with a chat template."""
SYNCHRONISING = "called a synchronizing CUDA operation"
"""What torch warns of in the debug mode for synchronisations."""


def random_model(sizes: Row, device: torch.device, dtype: torch.dtype) -> Adapter:
    """Build a random model of the Llama family on the device itself."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **sizes)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Adapter(model)


def random_text(tokens: int, vocabulary: int) -> TokenizedText:
    """Return a text of random tokens, one to a character."""
    ids = np.random.default_rng(0).integers(0, vocabulary, tokens, dtype=np.int32)
    places = np.arange(tokens, dtype=np.int32)
    document = Document.from_text("x" * tokens)
    return TokenizedText((document,), ids, places, places + 1, np.asarray([0, tokens], np.int64))


def product_limit(device: torch.device, dtype: torch.dtype, size: int, times: int = 20) -> float:
    """Return the operations per second of the device's own product of two square matrices: the best of `times`."""
    a, b = (torch.randn((size, size), device=device, dtype=dtype) for _ in range(2))
    a @ b
    best = float("inf")
    for _ in range(times):
        settle(device)
        started = time.perf_counter()
        a @ b
        settle(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


class Operations:
    """Counts the operations that reading needs: products with weights, attention to what is seen, the output head."""

    def __init__(self, adapter: Adapter) -> None:
        config = adapter.config
        linear = [m for m in adapter.backbone.modules() if isinstance(m, torch.nn.Linear)]
        heads = int(config.num_attention_heads) * int(adapter.attentions[0].head_dim)
        self.per_token = 2.0 * sum(m.weight.numel() for m in linear)
        self.per_pair = 4.0 * heads * len(adapter.windows)  # of a token and a slot that it sees
        self.per_head = 2.0 * adapter.head.weight.numel()
        self.total = 0.0

    def forward(self, new: int, held: int) -> None:
        """Count a forward of C tokens after which S slots are held."""
        self.total += new * (self.per_token + self.per_pair * (held - (new - 1) / 2))

    def head(self, rows: int) -> None:
        """Count the output head over so many tokens."""
        self.total += rows * self.per_head


def read(adapter: Adapter, config: PotConfig, tokens: int, points: int) -> tuple[Pot, Row]:
    """Read a text, waiting for the device only `points` times.

    Returns:
        The pot, and tokens/s over all and between the points, and operations per second.
    """
    device = adapter.device
    text = random_text(tokens, adapter.vocabulary)
    prefix, catalysts = prompts(adapter)
    divided = plan(config, adapter.window, tokens, len(prefix), max(map(len, catalysts)), RESERVE)
    count = Operations(adapter)
    count.forward(len(prefix), len(prefix))
    marks = [(0, time.perf_counter())]
    before = ReadStats(tokens, slots=len(prefix))

    def told(stats: ReadStats) -> None:
        nonlocal before
        new = stats.tokens_read - before.tokens_read
        if stats.cycles > before.cycles:
            for prompt in catalysts:
                count.forward(len(prompt), before.slots + len(prompt))
        count.forward(new, stats.slots)
        if config.novelty_share and tokens - stats.tokens_read > divided.room - stats.slots:
            count.head(new)
        before = stats
        if stats.tokens_read >= (len(marks) * tokens) // points or stats.tokens_read == tokens:
            settle(device)
            marks.append((stats.tokens_read, time.perf_counter()))

    settle(device)
    marks[0] = (0, time.perf_counter())
    pot, stats = Reader(adapter, config).read(text, prefix, catalysts, RESERVE, progress=told)
    seconds = marks[-1][1] - marks[0][1]
    speeds = [round((b - a) / (t - s), 1) for (a, s), (b, t) in pairwise(marks) if b > a]
    whole = speeds[1:-1] or speeds  # the first stretch fills the pot, the last ends within a cycle
    tenth = max(1, len(speeds) // 10)
    return pot, {
        "tokens": stats.tokens_read,
        "cycles": stats.cycles,
        "slots": stats.slots,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "tokens_per_second_over_time": speeds,
        "late_to_early": round(median(whole[-tenth:]) / median(whole[:tenth]), 4),
        "operations_per_second": count.total / seconds,
    }


def prompts(adapter: Adapter) -> tuple[list[int], list[list[int]]]:
    """Return a prefix and catalysts of random tokens."""
    ids = np.random.default_rng(1).integers(0, adapter.vocabulary, PREFIX + sum(CATALYSTS)).tolist()
    bounds = np.cumsum([PREFIX, *CATALYSTS]).tolist()
    return ids[:PREFIX], [ids[a:b] for a, b in pairwise(bounds)]


@contextmanager
def counted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count the calls that make the CPU wait for a CUDA device, by the line that made them; none elsewhere."""
    places: Counter[str] = Counter()
    if device.type != "cuda":
        yield places
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
            for warning in caught:
                if SYNCHRONISING in str(warning.message):
                    places[f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"] += 1


def waits(adapter: Adapter, config: PotConfig, cycles: int) -> Row:
    """Count the waits while a pot is filled and distilled a few times."""
    prefix, catalysts = prompts(adapter)
    divided = plan(config, adapter.window, 2**40, len(prefix), max(map(len, catalysts)), RESERVE)
    tokens = divided.room + cycles * (divided.room - divided.kept)
    text = random_text(tokens, adapter.vocabulary)
    forwards = 0

    def told(stats: ReadStats) -> None:
        nonlocal forwards
        forwards += 1

    reader = Reader(adapter, config)
    with counted_waits(adapter.device) as places:
        reader.read(text, prefix, catalysts, RESERVE, progress=told)
    total = places.total()
    return {
        "tokens": tokens,
        "chunks": forwards,
        "waits": total if adapter.device.type == "cuda" else None,
        "waits_per_token": round(total / tokens, 6) if adapter.device.type == "cuda" else None,
        "places": dict(places.most_common(20)),
    }


def byte_codec() -> TextCodec:
    """Return a tokenizer of bytes that knows no end of an answer, for `decode`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=core))


def decoding(adapter: Adapter, pot: Pot, new: int) -> Row:
    """Answer over the pot with the package's own decoder; the first token, which is the question's, is left out."""
    _, catalysts = prompts(adapter)
    adapter.model.generation_config.eos_token_id = None
    stamps = Stamps()
    decode(adapter, byte_codec(), pot, catalysts[0], Sampling(max_new_tokens=new), processors=[stamps])
    between = stamps.between
    with counted_waits(adapter.device) as places:
        decode(adapter, byte_codec(), pot, catalysts[0], Sampling(max_new_tokens=new))
    return {
        "tokens": len(between),
        "milliseconds_per_token": round(1000 * median(between), 3),
        "tokens_per_second": round(1 / median(between), 1),
        "waits_per_token": round(places.total() / new, 3) if adapter.device.type == "cuda" else None,
        "places": dict(places.most_common(10)),
    }


def measure(adapter: Adapter, config: PotConfig, tokens: int, *, points: int, size: int, new: int) -> Row:
    """Measure one pot.

    Args:
        adapter: The model.
        config: Budget, chunk, novelty.
        tokens: Of the text.
        points: Times at which the speed is noted.
        size: Rows of the matrices of the product that is the limit.
        new: Tokens of the answer.
    """
    device = adapter.device
    on_gpu = device.type == "cuda"
    few = waits(adapter, config, cycles=3)  # warms up, too
    weights = sum(p.nbytes for p in adapter.model.parameters())
    limits = [product_limit(device, adapter.dtype, size)]
    if on_gpu:
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    pot, found = read(adapter, config, tokens, points)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    limits.append(product_limit(device, adapter.dtype, size))  # after the reading, which is warm, once more
    return {
        "budget": config.budget,
        "chunk": config.chunk,
        "novelty_share": config.novelty_share,
        "weights_mb": round(weights / 1e6, 1),
        "pot_mb": round(pot.cache.nbytes() / 1e6, 1),
        "peak_above_weights_mb": None if peak is None else round((peak - held) / 1e6, 1),
        "reading": found,
        "limit_operations_per_second": max(limits),
        "share_of_limit": round(found["operations_per_second"] / max(limits), 4),
        "waiting": few,
        "decoding": decoding(adapter, pot, new),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], help="bfloat16; with --tiny float32")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and text")
    parser.add_argument("--tokens", type=int, help="1,000,000; with --tiny 4,000")
    parser.add_argument("--budgets", type=numbers, help="4096,16384; with --tiny 512,768")
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--novelty-share", type=float, default=0.5)
    parser.add_argument("--new", type=int, help="tokens of an answer: 200; with --tiny 8")
    parser.add_argument("--out", type=Path, help="JSON lines; rows are appended")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "there is no CUDA device that torch can use here: run this on a GPU machine, or with --device cpu --tiny."
        )
    if args.device == "cpu" and not args.tiny:
        sys.exit("a model of 8 billion parameters is too much for this on a CPU: add --tiny.")
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype or ("float32" if args.tiny else "bfloat16"))
    adapter = random_model(TINY if args.tiny else LLAMA_8B, device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    about = {"device": name, "dtype": str(dtype).removeprefix("torch."), **machine(), "tiny": args.tiny}
    difference = adapter.self_check()  # that what is timed is right on this device
    tokens = args.tokens or (4000 if args.tiny else 1_000_000)
    for budget in args.budgets or ([512, 768] if args.tiny else [4096, 16384]):
        config = PotConfig(budget=budget, chunk=args.chunk, novelty_share=args.novelty_share)
        measured = measure(
            adapter, config, tokens,
            points=20, size=256 if args.tiny else 8192, new=args.new or (8 if args.tiny else 200),
        )  # fmt: skip
        row = {**about, "self_check": difference, **measured}
        print(json.dumps(row), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
