"""The follow-up benchmark: what its arms hold, which rows it adds to, and what a report says of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infinipot_llm import Document, InfiniPot
from infinipot_llm.memory.recall import Passage, pot_of_text

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import followup
import followup_data
import repair
from followup import check_same
from followup_arms import ROOM, Asked
from followup_data import Question, Sample
from followup_report import report, report_lengths

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TEXT = "The mill at Tarn was sold in 1871. " * 20  # 700 tokens
QUESTION = Question("nq", "g", "When?", ("1871",), ((0, 5),))


def asked_of(llm: InfiniPot, text: str) -> Asked:
    sample = Sample("A4", text, (QUESTION,))
    memory = llm.read(Document.from_text(text))
    bench: Any = SimpleNamespace(
        llm=llm, args=SimpleNamespace(embeddings=None), samples={"A4": sample}, memory=lambda name: memory,
        reform_heads=[(0, 0), (2, 1)],
    )  # fmt: skip
    return Asked(bench, "A4")


def test_each_arm_holds_what_its_name_says(tiny_llm: InfiniPot) -> None:
    asked, before = asked_of(tiny_llm, TEXT), len(tiny_llm.form.prefix)
    assert asked.pot_for("full", QUESTION).length == before + 700
    streaming = asked.pot_for("streaming-256", QUESTION)
    assert streaming.length == before + 256
    assert streaming.origin[0, 0, -1] == 699
    assert streaming.budget - streaming.length == ROOM


def test_gathered_tokens_fill_the_budget(tiny_llm: InfiniPot) -> None:
    tiny_llm.config = replace(tiny_llm.config, shelf="int8")
    asked, before = asked_of(tiny_llm, TEXT), len(tiny_llm.form.prefix)
    assert asked.pot_for("reform-200", QUESTION).length == before + 200
    ranges = asked.gathered("When?", 200)
    assert sum(b - a for a, b in ranges) == 200
    assert list(ranges) == sorted(ranges)


def test_loaded_passages_are_repaired_where_that_is_asked_for(tiny_llm: InfiniPot) -> None:
    tiny_llm.config = replace(tiny_llm.config, shelf="int8")
    asked = asked_of(tiny_llm, TEXT)
    setup, shelf = asked.memory.setup, asked.memory.finder.shelf
    passages = [Passage(400, 460, 2.0), Passage(35, 45, 1.0)]
    slots = 500
    read = pot_of_text(setup, asked.text, passages, slots)
    plain = repair.loaded(setup, asked.text, shelf, passages, slots, frozenset())
    assert torch.equal(plain.origin, read.origin)
    before = len(setup.form.prefix)
    keys, values = shelf.load(*shelf.rows_of(400, 460))
    assert torch.allclose(plain.state()["keys"][:, :, before : before + 60], keys.to(plain.state()["keys"]))
    everything = repair.loaded(setup, asked.text, shelf, passages, slots, frozenset(range(700)))
    for name in ("keys", "values", "rotated_keys"):
        assert torch.allclose(everything.state()[name], read.state()[name], atol=1e-5)
    first = repair.first_tokens(passages)
    assert first == {*range(400, 416), *range(35, 45)}
    some = repair.loaded(setup, asked.text, shelf, passages, slots, first).state()
    assert torch.allclose(some["values"][:, :, : before + 16], read.state()["values"][:, :, : before + 16], atol=1e-5)
    behind = slice(before + 16, before + 60)
    assert torch.allclose(some["values"][:, :, behind], values[:, :, 16:].to(some["values"]))
    most = repair.most_asked(setup, plain, [5, 6, 7])
    assert len(most) == 14
    assert most < {*range(400, 460), *range(35, 45)}


@pytest.mark.parametrize("kind", ["loaded", "first", "asked"])
def test_repaired_arms_hold_the_tokens_of_the_default(tiny_llm: InfiniPot, kind: str) -> None:
    tiny_llm.config = replace(tiny_llm.config, shelf="int8")
    asked = asked_of(tiny_llm, TEXT)
    best = asked.pot_for("best-200", QUESTION)
    pot = asked.pot_for(f"{kind}-200", QUESTION)
    assert torch.equal(pot.origin, best.origin)
    same = torch.allclose(pot.state()["values"], best.state()["values"], atol=1e-5)
    assert not same


@pytest.mark.parametrize(("which", "heads"), [("uncalibrated", 12), ("all", 18)])  # three layers of six
def test_memories_are_read_for_the_heads_that_are_named(
    tiny_llm: InfiniPot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: str, heads: int
) -> None:
    def none(data: Path) -> Any:
        return {}

    monkeypatch.setattr(InfiniPot, "from_pretrained", lambda *_, **__: tiny_llm)
    monkeypatch.setattr(followup.data, "load", none)
    monkeypatch.setattr(followup.data, "squality", none)
    before = tiny_llm.heads
    args = SimpleNamespace(data=tmp_path, memories=tmp_path, model="m", dtype="auto", heads="known", shelf="keys")
    assert followup.Bench(args).llm.heads is before  # type: ignore[arg-type]
    args.heads, args.samples = which, ["A4"]
    bench = followup.Bench(args)  # type: ignore[arg-type]
    bench.samples = {"A4": Sample("A4", TEXT, (QUESTION,))}
    followup.read(bench)
    tiny_llm.heads = before
    found = bench.memory("A4")
    assert len(found.setup.heads.heads) == heads
    assert found.setup.heads.calibrated == (which == "all")
    assert found.recall("When?", 64)


def test_rounds_are_of_the_kinds_that_are_named(tiny_llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_of(tiny_llm, TEXT)
    other = replace(QUESTION, kind="hotpot", gold=((0, 5), (350, 360)))
    asked.sample = replace(asked.sample, questions=(QUESTION, other))
    monkeypatch.setattr(followup, "Asked", lambda *_: asked)
    args = SimpleNamespace(samples=["A4"], kinds=["hotpot"])
    bench: Any = SimpleNamespace(llm=tiny_llm, args=args, done={("A4", 1, "rounds-passage")})
    assert [(r["number"], r["arm"]) for r in followup.rounds(bench)] == [(1, "rounds-draft")]


def test_the_same_questions_are_drawn_at_every_length() -> None:
    def sample(name: str, words: str) -> Sample:
        return Sample(name, "", tuple(replace(QUESTION, question=word) for word in words.split()))

    samples = {s.name: s for s in (sample("A4", "a b c d"), sample("B4", "e f g"), sample("m16", "x c g a y b d e f"))}
    samples["n8"] = sample("n8", "r s t u")
    samples["n130"] = sample("n130", "v u t s r w")
    drawn = {name: {q.question for _, q in followup_data.drawn(samples, name, 3)} for name in samples}
    assert drawn["A4"] | drawn["B4"] == drawn["m16"]
    assert drawn["n8"] == drawn["n130"]
    assert len(drawn["m16"]) == len(drawn["n8"]) == 3
    everything = followup_data.drawn(samples, "m16", 1000)
    assert [q.question for _, q in everything] == ["c", "g", "a", "b", "d", "e", "f"]  # those of A4 and B4 alone
    number, question = followup_data.drawn(samples, "m16", 1)[0]
    assert everything[number] == (number, question)


def test_full_is_refused_where_it_cannot_be(
    tiny_llm: InfiniPot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was a compressed cache in disguise."""
    asked = asked_of(tiny_llm, TEXT * 6)
    monkeypatch.setattr(followup, "Bench", lambda args: SimpleNamespace(llm=tiny_llm, args=args))
    monkeypatch.setattr(followup, "answers", lambda bench: iter([asked.pot_for("full", QUESTION)]))
    monkeypatch.setattr(followup, "Asked", lambda *_: asked)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["followup.py", "answers", "--out", str(tmp_path / "rows.jsonl")])
    with pytest.raises(SystemExit, match="beyond the 4096 positions this model was trained on"):
        followup.main()


def row(sample: str, number: int, arm: str, **more: Any) -> dict[str, Any]:
    values = {"contains": True, "f1": 0.5, "words": 3, "seconds": 1.0, **more}
    about = {"kind": "nq", "group": f"g{number}", "model": "m", "dtype": "float32"}
    return {"sample": sample, "number": number, "arm": arm, **about, **values}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "other"}, "other in float32"),
        ({"dtype": "bfloat16"}, "m in bfloat16"),
        ({"model": None}, "an unknown model in float32"),
        ({"dtype": None}, "m in an unknown precision"),
    ],
)
def test_rows_are_added_to_their_like_alone(changes: dict[str, Any], said: str) -> None:
    here = Path("rows.jsonl")
    mine = row("A4", 0, "full")
    check_same([], "m", "float32", here)
    check_same([mine, mine], "m", "float32", here)
    other = {name: value for name, value in {**mine, **changes}.items() if value is not None}
    with pytest.raises(SystemExit, match=f"rows.jsonl holds rows of {said}, these are of m in float32: give another"):
        check_same([mine, other], "m", "float32", here)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("followup-*.jsonl")), ids=lambda path: str(path.stem))
def test_the_rows_of_ours_can_be_added_to(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    (model,) = (name for name in ("qwen2.5-coder-0.5b", "smollm2-135m", "gemma3-270m") if f"-{name}-" in path.name)
    check_same(rows, model, "bfloat16" if "-bf16-" in path.name else "float32", path)


def test_a_report_has_every_sample_and_no_interval_of_few_sources(capsys: pytest.CaptureFixture[str]) -> None:
    few = [row("h30", n, arm, contains=arm == "full") for n in range(3) for arm in ("recall-512", "full")]
    many = [row("n8", n, arm, contains=arm == "full") for n in range(8) for arm in ("recall-512", "full")]
    report([*few, *many], "recall-512")
    out = capsys.readouterr().out
    assert "| 30K hotpot | full | 3 |" in out
    assert "nan" not in out
    assert "| 3 | -1.000 [no interval] |" in out
    assert "| 8 | -1.000 [-1.000, -1.000] |" in out


def test_lengths_are_put_together_where_all_were_asked(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(sample, n, "best-1024", f1=0.7) for sample in ("A4", "B4", "m16", "m30") for n in range(6)]
    rows += [row(sample, n, "full", contains=n < 3) for sample in ("A4", "B4", "m16", "m30") for n in range(6)]
    rows += [row("m30", n, "closed", contains=False) for n in range(6)]
    rows += [row("n8", n, "full") for n in range(6)]
    report(rows)
    lines = capsys.readouterr().out.splitlines()
    joint = [line for line in lines if line.startswith("| 4K, 16K, 30K |")]
    assert [line.split(" | ")[1:3] for line in joint] == [["best-1024", "24"], ["full", "24"]]
    assert joint[1].endswith("| 24 | +0.500 [+0.167, +0.833] | +0.200 [+0.200, +0.200] |")
    assert not any(line.startswith("| 8K |") for line in lines)  # x8 was not asked
    assert any(line.startswith("| 8K nq | full | 6 |") and "| 0 |  |  |" in line for line in lines)


def test_lengths_are_compared_on_the_same_questions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A question has another number in every document."""
    questions = [Question("nq", f"g{n}", f"What is {n}?", ("x",), ((0, 1),)) for n in range(8)]
    parts = {"A4": questions[:3], "B4": questions[3:], "m16": questions[::-1], "m30": questions[4:] + questions[:4]}
    parts |= {"n8": questions[:7], "n130": questions[::-1]}
    samples = {name: Sample(name, "", tuple(some)) for name, some in parts.items()}
    monkeypatch.setattr(followup_data, "load", lambda folder: samples)
    right = {f"What is {n}?": float(n < 6) for n in range(8)}
    rows = [
        {"sample": name, "number": number, "arm": "best-1024", "group": question.group, "f1": 0.5,
         "contains": right[question.question] if name != "m30" else 0.0}
        for name in samples for number, question in followup_data.drawn(samples, name, 8)
    ]  # fmt: skip
    report_lengths(rows, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "| best-1024 | m16 | A4 and B4 | 8 | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] |",
        "| best-1024 | m30 | A4 and B4 | 8 | -0.750 [-1.000, -0.375] | +0.000 [+0.000, +0.000] |",
        "| best-1024 | n130 | n8 | 7 | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] |",
    ]
