"""`infinipot bench`: tables, rows and pictures; resumed, interrupted, and refused in one sentence."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import byte_tokenizer, tiny_model

from infinipot_llm import PotConfig, cli
from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.cli.comparing import Clock, marked, parse_length
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation import arms, runs
from infinipot_llm.evaluation.arms import Arm, Outcome
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.runs import Reading, Step

pytest.importorskip("matplotlib")

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--lengths", "1400,2k", "--depths", "0,100", "--kinds", "sentence,several", "--budget", 700)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_folder: Path) -> Run:
    """Run `infinipot bench ARGUMENTS --model TINY --out out`; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFINIPOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        given = [*map(str, arguments)]
        for option, value in (("--model", model_folder), ("--out", "out")):
            given += [] if option in given else [option, str(value)]
        monkeypatch.setattr(sys, "argv", ["infinipot", "bench", *given])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


class Reciter:
    """Answers with the whole context, which tells all values of a needle, unless it is long and the cache full."""

    stops_after = -1
    asked = 0

    def __init__(self, llm: Any) -> None:
        self.budget = llm.config.budget

    def answer(self, arm: Arm, context: str, prompt: Prompt, **how: Any) -> Outcome:
        assert how["max_new_tokens"] in (32, 48, 64, 96)
        if Reciter.asked == Reciter.stops_after:
            raise KeyboardInterrupt
        Reciter.asked += 1
        if arm.name == "full" and len(context) > 1500:
            raise BudgetError("too long.")
        return Outcome(context if arm.name != "streaming" else "", "stop", len(context), 600, 1, 1.0, 0.5, 4)


@pytest.fixture
def reciter(monkeypatch: pytest.MonkeyPatch) -> type[Reciter]:
    monkeypatch.setattr(Reciter, "asked", 0)
    monkeypatch.setattr(Reciter, "stops_after", -1)
    monkeypatch.setattr(arms, "Examinee", Reciter)
    return Reciter


def rows(name: str = "needle") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out", f"{name}.jsonl").read_text().splitlines()]


def test_needles_from_end_to_end(run: Run, model_folder: Path) -> None:
    code, out, err = run("needle", *SMALL, "--kinds", "number", "--policies", "full,infinipot,own:truncate", "--hidden")
    assert code == 0, err
    found = rows()
    assert len(found) == 3 * 2 * 2
    assert {row["arm"] for row in found} == {"full", "infinipot", "own:truncate"}
    assert all(row["slots"] <= 700 for row in found if row["arm"] != "full")
    assert all(row["hidden"] and row["model"] == model_folder.name and row["budget"] == 700 for row in found)
    assert str(model_folder.parent) not in Path("out", "needle.jsonl").read_text()
    assert "12 answers to give, for which 12 contexts are read, 20,6" in err
    (picture,) = Path("out").glob("needle-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = Path("out", "needle.md").read_text()
    assert out.strip() in written
    assert f"budget 700, question hidden while reading; run {picture.stem.removeprefix('needle-')}\n" in written


def test_tables_tell_what_was_found_and_what_could_not_be_run(run: Run, reciter: type[Reciter]) -> None:
    code, out, err = run("needle", *SMALL, "--policies", "full,infinipot,streaming", "--base", "infinipot")
    assert code == 0, err
    assert "| needle-sentence | full | not seen | 2 | 2 | 1.000 " in out
    assert "| needle-several | infinipot | seen | 4 |  | 1.000 " in out
    assert "| all | streaming | not seen | 4 |  | 0.000 [0.000, 0.490] | -1.000 [no interval], tie |" in out
    assert "| 100 % | 1.00 | refused |" in out
    assert "1 of 24 answers, about " in err


def test_recall_with_settings_has_a_shelf_of_its_own(run: Run) -> None:
    arm = "recall:recall=64"
    code, _, err = run("needle", *SMALL, "--lengths", 1400, "--kinds", "number", "--policies", arm)
    assert code == 0, err
    assert [(row["arm"], row.get("refused")) for row in rows()] == [(arm, None)] * 2


def test_an_interrupted_run_goes_on_where_it_was(run: Run, reciter: type[Reciter]) -> None:
    wanted = ("needle", *SMALL, "--policies", "infinipot,streaming")
    reciter.stops_after = 5
    code, out, err = run(*wanted)
    assert code == 130
    assert out == ""
    assert "the same command goes on" in err
    assert len(rows()) == 5
    with Path("out", "needle.jsonl").open("a") as file:
        file.write('{"arm": "stre')
    reciter.stops_after = -1
    code, out, err = run(*wanted)
    assert code == 0
    assert "torn" in err
    assert "11 answers to give" in err
    assert "5 were given before" in err
    assert len(rows()) == 16
    assert reciter.asked == 16
    assert run(*wanted)[1] == out, "the same table, and nothing is asked again"
    assert reciter.asked == 16
    assert run(*wanted, "--budget", 720)[0] == 0
    assert reciter.asked == 32, "other settings are another run"
    assert len(rows()) == 32


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    """Two articles of a set of questions."""
    text = "The mill at Arden burned down in 1874. " * 8
    questions = [
        {"id": f"q{n}", "question": f"When did the mill burn down, try {n}?", "answers": [{"text": "1874"}]}
        for n in range(3)
    ]
    paragraph = {"context": text, "qas": questions[:2]}
    other = {"context": text + "It was a Monday.", "qas": questions[2:]}
    data = {"data": [{"title": "Mills", "paragraphs": [paragraph]}, {"title": "Days", "paragraphs": [other]}]}
    (tmp_path / "secret.json").write_text(json.dumps(data))
    return tmp_path / "secret.json"


def test_questions_of_a_data_set(run: Run, reciter: type[Reciter], squad: Path) -> None:
    code, out, err = run("qa", squad, "--policies", "infinipot,streaming", "--budget", 300)
    assert code == 0, err
    assert "6 answers to give, for which 5 contexts are read" in err, "streaming reads once for two questions"
    assert "| qa | infinipot | seen | 3 |  | 1.000 " in out
    assert "| qa | streaming | not seen | 3 |  | 0.000 " in out
    assert "| task | arm | question | n | refused | token_f1 |" in out
    assert [row["scores"]["contains"] for row in rows("qa")] == [1.0] * 3 + [0.0] * 3
    kept = Path("out", "qa.jsonl").read_text()
    assert "burn" not in kept
    assert "1874" not in kept
    assert run("qa", squad, "--policies", "infinipot", "--budget", 300, "--limit", 1)[0] == 0
    assert reciter.asked == 6, "a part of what was asked before"
    squad.write_text(squad.read_text().replace("Monday", "Friday"))
    assert run("qa", squad, "--policies", "infinipot", "--budget", 300)[0] == 0
    assert reciter.asked == 7, "another context under the same name is another case"


def test_a_report_destroys_no_other(run: Run, reciter: type[Reciter], squad: Path) -> None:
    other = squad.with_name("other.json")
    shutil.copy(squad, other)
    arms = ("--policies", "infinipot,streaming", "--budget", 300)
    runs = [(squad,), (squad, "--hidden"), (other,), (squad, "--limit", 2), (squad, "--base", "streaming")]
    outs = [run("qa", *given, *arms)[1] for given in runs]
    written = Path("out", "qa.md").read_text()
    assert all(out.strip() in written for out in outs)
    headings = [line for line in written.splitlines() if line.startswith("# ")]
    assert len(headings) == len(set(headings)) == 5
    assert "question hidden while reading" in headings[1]
    assert headings[2].startswith("# other.json")
    run("qa", squad, *arms)
    again = Path("out", "qa.md").read_text()
    assert sorted(line for line in again.splitlines() if line.startswith("# ")) == sorted(headings)
    assert len(again) == len(written), "the same run replaces its own report alone"
    assert [path.name for path in Path("out").iterdir() if path.suffix == ".new"] == []


def test_pictures_of_other_runs_stay(run: Run, reciter: type[Reciter]) -> None:
    small = ("needle", "--lengths", "1400", "--kinds", "sentence", "--budget", 700, "--policies", "infinipot")
    for given in ((), ("--hidden",), ("--seed", 1), ()):
        assert run(*small, *given)[0] == 0
    assert len(list(Path("out").glob("needle-*.png"))) == 3


def test_rows_of_other_code_are_another_run(
    run: Run, reciter: type[Reciter], squad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("qa", squad, "--policies", "infinipot", "--budget", 300)
    assert run(*wanted)[0] == 0
    assert run(*wanted)[0] == 0
    assert reciter.asked == 3
    monkeypatch.setattr(runs, "sources_digest", lambda: "edited")
    assert run(*wanted)[0] == 0
    assert reciter.asked == 6
    true_version = importlib.metadata.version
    for name in ("torch", "transformers", "tokenizers", "bm25s"):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", lambda n, of=name: "0" if n == of else true_version(n))
            assert run(*wanted)[0] == 0
    assert reciter.asked == 18


def test_questions_from_end_to_end(run: Run, squad: Path) -> None:
    prompts = squad.parent / "prompts.json"
    prompts.write_text(json.dumps({"qasper": "Read: {context}\nAnswer: {input}"}))
    wanted = ("qa", squad, "--task", "qasper", "--policies", "full,streaming", "--budget", 420, "--limit", 2)
    code, out, err = run(*wanted, "--prompts", prompts)
    assert code == 0, err
    assert "| qasper | streaming | not seen | 2 |" in out
    assert run(*wanted)[0] == 0
    assert len(rows("qa")) == 8, "other prompts are another run"
    prompts.write_text(json.dumps({"qasper": "Q: {input} Read: {context}\nAnswer: {input}"}))
    code, out, err = run(*wanted, "--prompts", prompts, "--hidden")
    assert (code, out) == (2, "")
    assert "shows the question while reading" in err


def test_parts_of_the_method_one_by_one(run: Run, reciter: type[Reciter], squad: Path) -> None:
    wanted = ("ablation", squad, "--grids", "components,span", "--policies", "full", "--budget", 300)
    code, out, err = run(*wanted)
    assert code == 0, err
    arms = list(dict.fromkeys(row["arm"] for row in rows("ablation")))
    assert arms == [
        "full", "infinipot", "infinipot:agreement=0", "infinipot:agreement=0:novelty_share=0",
        "infinipot:agreement=0:novelty_share=1", "tova", "infinipot:positions=kept",
        *(f"infinipot:neighbours={n}" for n in (0, 4, 16)),
    ]  # fmt: skip
    assert all(re.search(rf"\| qa \| {arm} \| (not )?seen \| 3 \|", out) for arm in arms)
    assert "minus full" in out


@pytest.mark.parametrize("policies", ["full,infinipot", "full"])
def test_no_configuration_is_run_under_two_names(run: Run, reciter: type[Reciter], squad: Path, policies: str) -> None:
    grids = "alpha,agreement,kept,budget,span,reduce"
    code, _, err = run("ablation", squad, "--grids", grids, "--policies", policies, "--budget", 1024)
    assert code == 0, err
    changes = [dict(arms.parse_arm(row["arm"]).changes) for row in rows("ablation")[::3]]
    configs = [PotConfig(**{"budget": 1024, **change}) for change in changes[1:]]
    assert len(configs) == len(set(configs)) == 1 + 3 + 3 + 3 + 3 + 3 + 1
    assert PotConfig(budget=1024) in configs


@pytest.mark.parametrize(
    ("base", "told"), [("infinipot:kept=0.25", "infinipot:kept=0.25"), ("infinipot:kept=0.5", "infinipot")]
)
def test_an_arm_of_a_grid_may_be_the_base(run: Run, reciter: type[Reciter], squad: Path, base: str, told: str) -> None:
    wanted = ("ablation", squad, "--policies", "full", "--budget", 300, "--base", base)
    code, out, err = run(*wanted, "--grids", "kept")
    assert code == 0, err
    assert f"minus {told} |" in out
    code, _, err = run(*wanted, "--grids", "span")
    assert code == 2
    assert f"--base is '{base}', which is none of the arms" in err


def test_parts_of_the_method_from_end_to_end(run: Run, squad: Path) -> None:
    code, out, err = run("ablation", squad, "--policies", "streaming", "--budget", 420, "--limit", 1)
    assert code == 0, err
    assert "| qa | infinipot:positions=kept | seen | 1 |" in out
    assert all(row["cycles"] > 0 for row in rows("ablation"))


def test_hit_rates_from_end_to_end(run: Run, squad: Path) -> None:
    wanted = ("hit-rate", squad, "--budget", 420, "--limit", 2)
    exact = "infinipot:novelty_share=0:agreement=0:neighbours=0"
    code, out, err = run(*wanted, "--policies", f"{exact},streaming")
    assert code == 0, err
    assert "4 hit rates to count, for which 6 contexts are read, " in err
    assert f"| {exact} | 2 |  | 1.000 " in out, "nothing was dropped before the first"
    assert "| streaming | 2 |" in out
    assert all(0 <= hits["rate"] <= 1 for row in rows("hit-rate") for hits in row["hits"])
    assert "burn" not in Path("out", "hit-rate.jsonl").read_text()
    code, _, err = run(*wanted, "--policies", "streaming")
    assert code == 0
    assert "0 hit rates to count, for which 0 contexts are read, 0 tokens in all; 2 were counted before" in err
    assert len(rows("hit-rate")) == 4, "both were counted before"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("ablation", "data.json", "--grids", "colours"), "choose among components, alpha"),
        (("hit-rate", "data.json", "--policies", "full"), "has no cycles"),
        (("hit-rate", "data.json", "--hidden"), "--hidden has no meaning"),
        (("needle", "--policies", "infinipot:alpha=1"), "give one of budget"),
        (("needle", "--lengths", "4x"), "'4x'"),
        (("needle", "--lengths", "0"), "'0'"),
        (("needle", "--lengths", "4k,,8k"), "commas"),
        (("needle", "--lengths", "4k,4096"), "twice"),
        (("needle", "--lengths", "100"), "give at least"),
        (("needle", "--depths", "0,101"), "'101'"),
        (("needle", "--depths", "-5"), "'-5'"),
        (("needle", "--depths", "50,50"), "twice"),
        (("needle", "--kinds", "colour"), "key-value"),
        (("needle", "--policies", "best"), "own:snapkv"),
        (("needle", "--policies", "full,full"), "twice"),
        (("needle", "--policies", ""), "--policies"),
        (("needle", "--base", "recall"), "--base"),
        (("needle", "--repeats", 0), "--repeats"),
        (("needle", "--budget", 4), "budget"),
        (("needle", "--budget", 9000), "4096 positions"),
        (("needle", "--policies", "infinipot:kept=2"), "kept is 2.0"),
        (("needle", "--model", "gpt-9"), "smollm2-135m"),
        (("needle", "--out", "letter.txt"), "is a file"),
        (("needle", "--out", "letter.txt/sub"), "letter.txt is a file"),
        (("needle", "--out", "letters"), "no file of results"),
        (("qa", "none.json"), "none.json"),
        (("qa", "letter.txt"), "letter.txt"),
        (("qa", "data.json", "--task", "sing"), "sing"),
        (("qa", "data.json", "--limit", 0), "limit"),
        (("qa", "data.json", "--prompts", "none.json"), "none.json"),
        (("qa", "data.json", "--prompts", "prompts.json"), "no prompt for qa"),
        (("qa", "data.json", "--task", "qasper", "--prompts", "prompts.json"), "{context}"),
        (("qa", "data.json", "--policies", "best"), "own:snapkv"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_2_and_nothing_is_written(
    run: Run, squad: Path, tmp_path: Path, options: tuple[object, ...], says: str
) -> None:
    shutil.copy(squad, "data.json")
    Path("letter.txt").write_text("Dear Madam\n")
    Path("prompts.json").write_text(json.dumps({"qasper": "no place for a document"}))
    Path("letters").mkdir()
    Path("letters", "needle.jsonl").write_text("Dear Madam\n")
    before = {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")}
    code, out, err = run(*options)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith(("Error: ", "infinipot: "))]) == 1, err
    after = {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*") if p.name != ".lock"}
    assert after == before


def test_a_folder_that_cannot_be_made(
    run: Run, reciter: type[Reciter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("needle", *SMALL, "--policies", "infinipot")
    code, _, err = run(*wanted, "--out", tmp_path / ("n" * 300))
    assert code == 2
    assert "name too long" in err

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, out, err = run(*wanted)
    assert (code, out) == (2, "")
    assert "Permission denied" in err
    assert reciter.asked == 0


@pytest.mark.parametrize(("text", "tokens"), [("4k", 4096), ("4K", 4096), ("1m", 1 << 20), ("6000", 6000)])
def test_lengths(text: str, tokens: int) -> None:
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "4kk", "-4k", "4.5k", "１k", "9" * 12])
def test_what_is_no_length(text: str) -> None:
    with pytest.raises(click.UsageError):
        parse_length(text)


def test_the_time_left_counts_reading_and_answering(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Arm("streaming", "streaming", None, wants_question=False)
    cases = [Case(f"{n}", "ab"[n // 2], "?", ("x",), "qa", "g") for n in range(4)]
    readings = [Reading(quiet, tuple(cases[:2])), Reading(quiet, tuple(cases[2:]))]
    clock = Clock(readings, {"a": 100, "b": 300}, every=1e9)
    assert clock.tokens == 400
    assert clock.estimate(4) is None
    clock(Step(readings[0], {"read_seconds": 10.0, "answer_seconds": 3.0}, 1, 4))
    assert clock.estimate(3) == pytest.approx(300 * 10 / 100 + 3 * 3)
    clock(Step(readings[0], {"read_seconds": 0.0, "answer_seconds": 1.0}, 2, 4))
    assert clock.estimate(2) == pytest.approx(300 * 10 / 100 + 2 * 2)
    clock(Step(readings[1], {"refused": "too long."}, 3, 4))
    assert clock.estimate(1) == pytest.approx(2)
    assert capsys.readouterr().err == "infinipot: 1 of 4 answers, about 39 s left\n"


def test_a_case_with_other_labels_is_another_case() -> None:
    """They decide what an answer is worth: a corrected file is scored anew."""
    case = Case("k", "context", "question", ("City",), "trec", "g", ("City", "Food"))
    assert marked(case).key == marked(case).key != marked(replace(case, classes=("City",))).key
