"""Which model families can be read through a pot: writes the tables of docs/models.md.

    python benchmarks/families.py                               tiny random models of every family: about 2 minutes
    python benchmarks/families.py --convert GEMMA.gguf FOLDER   a GGUF file as a folder that the next line takes
    python benchmarks/families.py --real FOLDER ...             real weights: parity and needles, to benchmarks/results/

For every family a tiny random model is built, compared with itself read through slots (the self-check that runs at
every load), and a text of four times the budget is read through a pot and asked a question. A family is *tested* when
the test suite does the same and more, *expected* when it passes here alone, and *refused* otherwise, with the sentence
that a user would see. No weights are needed for that.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.errors import InfiniPotError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.load import load_model, quiet
from infinipot_llm.models.text import TextCodec, TokenizedText
from infinipot_llm.pot.novelty import surprise
from infinipot_llm.pot.reader import Reader

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "models.md"
RESULTS = HERE / "results" / "families-cpu2.jsonl"
TESTED = ["llama", "qwen2", "qwen3", "mistral", "phi3", "smollm3", "glm", "glm4", "olmo2", "olmo3", "granite"]
TESTED += ["gemma3_text", "cohere2"]  # FAMILIES and OTHERS of tests/conftest.py
_FURTHER = """
    gemma olmo qwen2_moe qwen3_moe mixtral phimoe olmoe granitemoe starcoder2 stablelm phi gpt_neox gpt_neox_japanese
    cohere exaone4 seed_oss arcee helium nemotron ministral apertus hunyuan_v1_dense hunyuan_v1_moe ernie4_5
    ernie4_5_moe dots1 bitnet diffllama persimmon codegen gptj gemma2 vaultgemma gemma3n_text gemma4_text gpt_oss
    llama4_text deepseek_v2 deepseek_v3 glm4_moe minimax falcon mpt bloom opt gpt2 gpt_bigcode jamba bamba falcon_h1
    zamba2 lfm2 qwen3_next mamba2 recurrent_gemma rwkv granitemoehybrid nanochat jais2 flex_olmo
"""
SIZES: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096, "vocab_size": 264,
    "initializer_range": 0.15, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "query_pre_attn_scalar": 16, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "moe_num_experts": 4,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "smollm3": {"num_hidden_layers": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 3},
    "dots1": {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "gemma4_text": {"vocab_size_per_layer_input": 264, "hidden_size_per_layer_input": 16},
    "gemma3n_text": {"vocab_size_per_layer_input": 264, "hidden_size_per_layer_input": 16},
}
"""What some families need beside it, to be small, or to be what their models are."""
PARAMETERS = 50_000_000
"""A configuration that ignores the sizes above is not built."""

NEEDLE = "The signal code of the lighthouse at Brannock Point is {code}."
NEEDLES = ((80, 1024, (0.1, 0.5)),)
"""Sentences of filler, budget, and where in the text the needle stands."""
ASKED = (
    "\n\nWhat is the signal code of the lighthouse at Brannock Point? "
    "The signal code of the lighthouse at Brannock Point is"
)
FILLER = (
    "The surveyor walked on. The river was low, the mill stood still, and nobody at the inn had any news of the barge. "
)


def tiny(kind: str) -> Any:
    """Build a random model of a family whose outputs depend on positions."""
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(kind, **{**SIZES, **OWN.get(kind, {})})
    except AttributeError:  # works the head dim out by itself
        config = AutoConfig.for_model(kind, **{k: v for k, v in SIZES.items() if k != "head_dim"})
    if len(set(getattr(config, "layer_types", None) or ())) > 1:
        config.sliding_window = 40
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > PARAMETERS:
        raise ValueError(f"a tiny one would have {size:,} parameters")
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.5)
    return model


def text_of(ids: list[int]) -> TokenizedText:
    """Make a text of tokens, one to a character."""
    document = Document.from_text("x" * len(ids))
    places = np.arange(len(ids), dtype=np.int32)
    return TokenizedText(
        (document,), np.asarray(ids, np.int32), places, places + 1, np.asarray([0, len(ids)], np.int64)
    )


def attempt(kind: str) -> dict[str, Any]:
    """Try a family; returns status and what there is to say."""
    try:
        with quiet():
            model = tiny(kind)
    except Exception as error:  # whatever a configuration of these sizes runs into
        return {
            "family": kind,
            "status": "not tried",
            "why": f"no tiny model of it can be built here ({_brief(error)})",
        }
    try:
        adapter = Adapter(model)
        difference = adapter.self_check()
        budget = min(200, adapter.window)
        ids = np.random.default_rng(0).integers(3, 264, 4 * budget + 40).tolist()
        config = PotConfig(budget=budget, chunk=64)
        pot, stats = Reader(adapter, config).read(text_of(ids[: 4 * budget]), [5, 6], [ids[:9]], 12)
        with pot.scratch():
            finite = bool(adapter.logits(adapter.forward(torch.tensor(ids[-9:]), pot.cache)).isfinite().all())
        if not finite or not stats.cycles:
            return {"family": kind, "status": "refused", "why": "what it says over a pot is not finite"}
    except InfiniPotError as error:
        return {"family": kind, "status": "refused", "why": _reason(str(error))}
    except Exception as error:  # a defect of ours: not to be hidden
        return {"family": kind, "status": "fails", "why": f"**without a sentence**: {_brief(error)}"}
    windows = [w for w in adapter.windows if w]
    notes = []
    if adapter.all_slide:
        notes.append("all layers slide: budgets up to their window")
    elif windows:
        notes.append(f"{adapter.layers} of {len(adapter.windows)} layers here hold slots, the others a window")
    if without := adapter.rotates.count(False):
        notes.append(f"{without} of {len(adapter.windows)} layers here have no positions")
    return {
        "family": kind,
        "status": "tested" if kind in TESTED else "expected",
        "why": "; ".join(notes),
        "difference": difference,
    }


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:90]}" if lines else type(error).__name__


def _reason(sentence: str) -> str:
    """Return the middle of a sentence "the architecture X is not supported: REASON; docs/models.md ..."."""
    reason = sentence.rsplit(": choose another model", 1)[0].split("; docs/models.md", 1)[0]
    return reason.split(" is not supported: ", 1)[-1]


# --- real weights ---


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a folder of float32 safetensors with its tokenizer; transformers reads it for minutes."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        described = {
            k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")
        }
        with torch.device("meta"):
            plain = type(model)(type(model.config).from_dict({**described, "dtype": "float32"}))
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.tie_weights()
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def needle_text(sentences: int, depth: float, code: str) -> str:
    """Return filler with one sentence hidden in it."""
    at = round(sentences * depth)
    return FILLER * at + NEEDLE.format(code=code) + " " + FILLER * (sentences - at)


def parity(adapter: Adapter, codec: TextCodec, tokens: int = 700, last: int = 100) -> float:
    """Return the largest difference to the plain model's last logits of a text, as a share of the largest logit."""
    ids = torch.tensor(_begin(codec) + codec.untrusted(needle_text(40, 0.4, "48213")))[:tokens]
    adapter.close()
    with torch.no_grad():
        plain = adapter.backbone(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    adapter.open()
    cache = adapter.new_cache(tokens)
    ours = torch.cat([adapter.forward(part, cache) for part in ids.split(150)])
    first, second = (adapter.logits(states[-last:]) for states in (plain, ours))
    return float((first - second).abs().max() / first.abs().max())


def _begin(codec: TextCodec) -> list[int]:
    first = codec.tokenizer.bos_token_id
    return [] if first is None else [int(first)]


def find_needle(
    adapter: Adapter, codec: TextCodec, sentences: int, depth: float, code: str, config: PotConfig
) -> dict[str, Any]:
    """Read a needle through a pot and complete the sentence that asks for it, greedily."""
    text = codec.document([Document.from_text(needle_text(sentences, depth, code))])
    asked, answer = codec.untrusted(ASKED), codec.untrusted(f" {code}.")
    pot, stats = Reader(adapter, config).read(text, _begin(codec), [asked], len(asked) + len(answer))
    said: list[int] = []
    with pot.scratch():
        states = adapter.forward(torch.tensor(asked), pot.cache)
        for _ in answer:
            said.append(int(adapter.logits(states[-1:]).argmax()))
            states = adapter.forward(torch.tensor(said[-1:]), pot.cache)
    with pot.scratch():
        states = adapter.forward(torch.tensor([*asked, *answer]), pot.cache)
    nll = float(surprise(adapter, states[len(asked) - 1 : -1], torch.tensor(answer)).mean())
    return {
        "tokens": len(text), "depth": depth, "budget": config.budget, "cycles": stats.cycles,
        "found": code in codec.decode(said), "nll": round(nll, 3), "seconds": round(stats.seconds, 1),
    }  # fmt: skip


def real(folder: Path) -> dict[str, Any]:
    """Measure a model with its real weights."""
    started = time.perf_counter()
    adapter, codec = load_model(str(folder), dtype="float32")
    row: dict[str, Any] = {
        "model": folder.name, "family": adapter.family, "transformers": version("transformers"),
        "layers": len(adapter.windows), "with_slots": adapter.layers,
        "window": max((w for w in adapter.windows if w), default=None),
        "difference": parity(adapter, codec), "needles": [],
    }  # fmt: skip
    for sentences, budget, depths in NEEDLES:
        for depth in depths:
            config = PotConfig(budget=budget)
            row["needles"].append(
                find_needle(adapter, codec, sentences, depth, str(48213 + round(7000 * depth)), config)
            )
            print(row["needles"][-1], flush=True)
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


# --- the page ---


SAID = {
    "tested": "works, tested",
    "expected": "should work",
    "fails": "fails",
    "refused": "refused",
    "not tried": "unknown",
}


def family_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of families."""
    lines = ["| family | | difference | |", "| --- | --- | --- | --- |"]
    for status, said in SAID.items():
        for row in sorted((r for r in rows if r["status"] == status), key=lambda r: r["family"]):
            found = f"{row['difference']:.0e}" if "difference" in row else ""
            lines.append(f"| `{row['family']}` | {said} | {found} | {row['why']} |")
    return [*lines, "", f"transformers {version('transformers')}."]


def real_lines(measured: list[dict[str, Any]]) -> list[str]:
    """Return the table of real weights."""
    lines = [
        "| model | difference | tokens | budget | cycles | found | nll |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured:
        by: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for needle in row["needles"]:
            by.setdefault((needle["tokens"], needle["budget"]), []).append(needle)
        for (tokens, budget), some in by.items():
            lines.append(
                f"| {row['model']} | {row['difference']:.0e} | {tokens:,} | {budget:,} | {some[0]['cycles']} "
                f"| {sum(n['found'] for n in some)} of {len(some)} | {np.mean([n['nll'] for n in some]):.2f} |"
            )
    return lines


def put(page: str, name: str, lines: list[str]) -> str:
    """Return the page with what stands between two comments replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = page.split(begin)
    return "\n".join([before + begin, "", *lines, "", end + rest.split(end)[1]])


def known_results() -> list[dict[str, Any]]:
    """Return the rows measured with real weights."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convert", nargs=2, type=Path, metavar=("GGUF", "FOLDER"))
    parser.add_argument("--real", nargs="+", type=Path, metavar="FOLDER", help="folders with real weights")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help="print these families, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(2 if args.real else 1)
    if args.convert:
        convert(*args.convert)
        return
    if args.real:
        for folder in args.real:
            known = [*(r for r in known_results() if r["model"] != folder.name), real(folder)]
            RESULTS.write_text("".join(json.dumps(row) + "\n" for row in known), encoding="utf-8")
        return
    rows = []
    for kind in args.only or [*TESTED, *_FURTHER.split()]:
        rows.append(attempt(kind))
        print(rows[-1], flush=True)
    if not args.only:
        page = put(PAGE.read_text(encoding="utf-8"), "families", family_lines(rows))
        PAGE.write_text(put(page, "real", real_lines(known_results())), encoding="utf-8")


if __name__ == "__main__":
    main()
