"""The benchmark of the catalyst: what tells its rows apart, and who answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infinipot_llm import InfiniPot

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import catalyst

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(tiny_llm: InfiniPot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the script on a tiny model and two paragraphs of two questions; return all rows of its file."""
    paragraphs = [
        {
            "context": f"The mill at {place} was sold in {year}. " * 8,
            "qas": [
                {"question": f"{when} was {place} sold?", "answers": [{"text": str(year)}]} for when in ("When", "Why")
            ],
        }
        for place, year in (("Tarn", 1871), ("Arden", 1902))
    ]
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    monkeypatch.setattr(InfiniPot, "from_pretrained", lambda *_, **__: tiny_llm)

    def call(*arguments: object) -> list[dict[str, Any]]:
        out = tmp_path / "rows.jsonl"
        fixed = ["--squad", tmp_path / "dev.json", "--out", out, "--budget", 380, "--documents", 1]
        given = [*fixed, "--characters", 600, *arguments]
        monkeypatch.setattr(sys, "argv", ["catalyst.py", *map(str, given)])
        catalyst.main()
        return [json.loads(line) for line in out.read_text().splitlines()]

    return call


def test_what_defines_an_item_tells_its_rows_apart(
    run: Run, capsys: pytest.CaptureFixture[str], tiny_llm: InfiniPot
) -> None:
    assert len(run("base", "--questions", 1)) == 1
    assert len(run("base", "--questions", 1)) == 1, "what is there is not run again"
    both = run("base", "--questions", 2)
    assert len(both) == 2, "the same first question, and a second one"
    assert len({row["item"] for row in both}) == 2
    assert len(run("base", "--questions", 2, "--budget", 400)) == 4
    assert len(run("base", "--questions", 2, "--characters", 100)) == 5, "another text"
    tiny_llm.name = "another"
    capsys.readouterr()
    assert len(run("base", "--questions", 2)) == 7, "another model"
    assert "base                 n=2 " in capsys.readouterr().out, "a report is of one run"


def test_rows_that_do_not_tell_are_of_no_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"config": "base", "item": 0, "nll": 1.0, "hit": True}) + "\n")
    assert len(run("base", "--questions", 1)) == 2


def test_full_drops_nothing_however_small_the_budget(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["config"]: row for row in run("full", "base", "--questions", 1)}
    assert rows["full"]["cycles"] == 0 < rows["base"]["cycles"]
    assert rows["full"]["budget"] > rows["full"]["tokens"] > rows["base"]["budget"] == 380
    with pytest.raises(SystemExit, match="beyond the 4096 positions this model was trained on"):
        run("full", "--characters", 5000)


def test_the_old_default_is_named() -> None:
    assert catalyst.CONFIGS["neighbours-4"] == {"neighbours": 4}


def test_the_pot_answers_and_not_the_shelf(run: Run, tiny_llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    read = InfiniPot.read
    monkeypatch.setattr(InfiniPot, "read", lambda *a, **how: made.append(read(*a, **how)) or made[-1])
    run("base", "--questions", 1)
    assert [memory.shelved for memory in made] == [None]
