"""The RAG benchmark: its hard questions are true of the reports, answers are scored by rule, and every arm runs."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DOCUMENTS
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import Settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from infinipot_llm import Document

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import rag
import rag_questions
from rag_questions import Question, first_number, pages_found, score

pytestmark = pytest.mark.usefixtures("closed_loop")

ROWS = [json.loads(line) for line in rag_questions.HARD.read_text(encoding="utf-8").splitlines()]
LEAST = {"two-places": 8, "list": 6, "count": 6, "summary": 4}
TOLD_BY_ROWS = {
    "questions", "model", "dtype", "threads", "arm", "number", "kind", "score", "found", "words", "seconds",
    "build_seconds", "bytes",
}  # fmt: skip


@cache
def pages(name: str) -> list[str]:
    document = Document.from_file(DOCUMENTS / f"{name}.pdf")
    return [document.text[page.start : page.end] for page in document.pages]


def of_kind(*kinds: str) -> list[Any]:
    return [pytest.param(row, id=f"{n + 1}-{row['kind']}") for n, row in enumerate(ROWS) if row["kind"] in kinds]


def stands_on(row: dict[str, Any], page: int, words: str) -> bool:
    """Whether words stand on a page, in one piece; blanks, tabs and line breaks are one."""
    return (
        re.search(rf"(?<!\w){re.escape(words)}(?!\w)", " ".join(pages(row["document"])[page - 1].split())) is not None
    )


def question(kind: Any, answers: tuple[str, ...] = (), parts: tuple[tuple[str, ...], ...] = ()) -> Question:
    return Question("mill", kind, "?", answers, parts, (2, 4))


def test_there_are_enough_questions_of_every_kind_and_no_two_are_the_same() -> None:
    by_kind = Counter(row["kind"] for row in ROWS)
    assert set(by_kind) == set(LEAST)
    assert all(by_kind[kind] >= least for kind, least in LEAST.items())
    assert len({row["question"] for row in ROWS}) == len(ROWS) >= 24
    assert [q.question for q in rag_questions.hard_questions()] == [row["question"] for row in ROWS]


@pytest.mark.parametrize("row", of_kind("two-places"))
def test_facts_stand_on_their_pages_which_are_several(row: dict[str, Any]) -> None:
    assert all(stands_on(row, fact["page"], fact["text"]) for fact in row["facts"])
    assert row["pages"] == sorted({fact["page"] for fact in row["facts"]})
    assert len(row["pages"]) > 1
    assert any(stands_on(row, fact["page"], row["answers"][0].removesuffix(" crowns")) for fact in row["facts"])
    assert not any(answer in row["question"] for answer in row["answers"])


@pytest.mark.parametrize("row", of_kind("list", "summary"))
def test_parts_stand_on_their_pages(row: dict[str, Any]) -> None:
    assert all(stands_on(row, part["page"], part["any"][0]) for part in row["parts"])
    assert row["pages"] == sorted({part["page"] for part in row["parts"]})
    assert len({part["any"][0] for part in row["parts"]}) == len(row["parts"]) >= (8 if row["kind"] == "summary" else 3)
    assert not any(wording in row["question"] for part in row["parts"] for wording in part["any"])


@pytest.mark.parametrize("row", of_kind("count"))
def test_counts_are_those_of_the_text(row: dict[str, Any]) -> None:
    pattern, within = re.compile(row["counted"]["pattern"], re.MULTILINE), row["counted"]["within"]
    found = {n: len(pattern.findall(text)) for n, text in enumerate(pages(row["document"]), start=1)}
    counted = found if within == "document" else {n: found[n] for n in row["pages"]}
    assert row["answers"] == [str(sum(counted.values()))]
    assert row["pages"] == [n for n, matches in counted.items() if matches]


def test_lists_that_a_pattern_can_check_are_complete() -> None:
    def told(start: str) -> list[str]:
        (row,) = [row for row in ROWS if row["question"].startswith(start)]
        return sorted(part["any"][0] for part in row["parts"])

    report, ferry = "\n".join(pages("hollin_valley")), "\n".join(pages("merrow_ferry"))
    assert told("List the names of all persons whom") == sorted(re.findall(r"\bDr (\w+ \w+)", report))
    titles = [title.partition(",")[0] for title in re.findall(r"^Table \d+\. (.+)", report, re.MULTILINE)]
    assert told("List the titles") == sorted(titles)
    sums = set(re.findall(r"\d+,\d{3}", ferry)) - {"6,214", "187,430", "2,016"}  # crossings and passengers
    assert told("List every sum") == sorted(sums)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("There are seven tables.", 7),
        ("10", 10),
        ("Seventeen terms, 3 of them short", 17),
        ("1,250 copies", 1250),
        ("4.5 percent, of 8", 8),
        ("None", None),
        ("someone often", None),
        ("B2B in 12 days.", 12),
        ("", None),
    ],
)
def test_the_first_whole_number_of_an_answer(answer: str, told: int | None) -> None:
    assert first_number(answer) == told


@given(st.integers(0, 10**9), st.text(alphabet=" abc\n:;", max_size=20))
def test_a_number_is_read_however_it_is_written(number: int, before: str) -> None:
    assert first_number(f"{before} {number}.") == first_number(f"{before} {number:,} times") == number


def test_scores_by_kind() -> None:
    counted = question("count", ("3",))
    assert [score(counted, said) for said in ("Three of the 8", "8, of which 3", "13", "")] == [1.0, 0.0, 0.0, 0.0]
    listed = question("list", parts=(("Ann Lee", "Lee"), ("Bo Ray",), ("4.4",), ("Ostrander & Vale",)))
    assert score(listed, "Mrs. Lee, Bo Ray; a margin of 4.4% and Ostrander & Vale") == 1.0
    assert score(listed, "Ann Lee and Lee, leery") == 0.25
    assert score(question("summary", parts=listed.parts), "Bo Ray and Ostrander Vale") == 0.5
    assert score(question("two-places", ("20 April", "April 20")), "on April 20, 2024") == 1.0
    assert score(question("two-places", ("780",)), "6,780 megalitres") == 0.0


def test_pages_found_are_those_of_the_right_document() -> None:
    asked = question("list")
    assert pages_found(asked, [("mill.pdf", 2), ("mill.pdf", 2), ("other.pdf", 4)]) == 0.5
    assert pages_found(asked, [("mill.pdf", 4), ("mill.pdf", 2), ("mill.pdf", 7)]) == 1.0
    assert pages_found(asked, []) == 0.0


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """A folder with a random encoder of ten words."""
    folder = tmp_path / "encoder"
    words = ["[PAD]", "[UNK]", "the", "dunmere", "table", "pounds", "report", "of", "name", "how"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def settings_kept() -> Iterator[None]:
    before = Settings._tokenizer
    yield
    Settings._tokenizer = before


@pytest.mark.usefixtures("settings_kept")
def test_every_arm_is_asked_every_kind_once_and_rows_tell_no_text(
    word_model: Path,
    embeddings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(rag.ANSWER_TOKENS, "hard", 8)
    out = tmp_path / "rows.jsonl"
    arms = ["ours", "bm25", "vector", "fused"]
    ask = ["ask", "--questions", "hard", "--model", str(word_model), "--embeddings", str(embeddings), "--threads", "1"]
    ask += ["--limit", "1", "--out", str(out)]
    rag.main([*ask, "--arms", ",".join(arms)])

    rows = rag.read_rows(out)
    assert all(set(row) <= TOLD_BY_ROWS for row in rows)
    told = {"questions", "model", "dtype", "arm", "kind"}
    assert all(isinstance(v, (int, float)) or k in told for row in rows for k, v in row.items())
    assert {(row["model"], row["dtype"], row["threads"]) for row in rows} == {(word_model.name, "auto", 1)}
    asked = [(row["arm"], row["kind"]) for row in rows if "number" in row]
    assert sorted(asked) == sorted((arm, kind) for arm in arms for kind in LEAST)
    assert all(0.0 <= row["score"] <= 1.0 and 0.0 <= row["found"] <= 1.0 for row in rows if "number" in row)
    assert any(row["found"] for row in rows if row.get("arm") == "ours" and "number" in row)

    before = out.read_text()
    rag.main([*ask, "--arms", "ours,bm25"])
    assert out.read_text() == before  # what is there is not asked again
    rag.main([*ask, "--arms", "bm25", "--dtype", "float32"])
    more = rag.read_rows(out)[len(rows) :]
    assert sorted(row["kind"] for row in more if "number" in row) == sorted(LEAST)  # but of another dtype it is
    assert {row["dtype"] for row in more} == {"float32"}

    capsys.readouterr()
    rag.main(["report", "--out", str(out)])
    table = capsys.readouterr().out
    assert all(f"| {kind} | {arm} | 1 |" in table for arm in arms for kind in LEAST)
    assert "Questions: pages" not in table
    assert table.count(f"Questions: hard; {word_model.name}, ") == 2


def test_report_compares_scores_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    def row(arm: str, number: int, kind: str, value: float) -> dict[str, Any]:
        return {"questions": "hard", "arm": arm, "number": number, "kind": kind, "score": value, "found": 0.5,
                "words": 9, "seconds": 2.0}  # fmt: skip

    built = [{"questions": "hard", "arm": arm, "build_seconds": 1.5, "bytes": 2_000_000} for arm in ("ours", "bm25")]
    ours = [row("ours", 0, "list", 1.0), row("ours", 1, "list", 0.5), row("ours", 2, "count", 1.0)]
    bm25 = [row("bm25", 0, "list", 0.5), row("bm25", 1, "list", 0.0), row("bm25", 2, "count", 0.0)]
    rag.report([*built, *ours, *bm25])
    told = capsys.readouterr().out
    assert "| list | ours | 2 | 0.750 [no interval] |  | 0.50 | 9 | 2.0 |" in told
    assert "| list | bm25 | 2 | 0.250 [no interval] | +0.500 [no interval] |" in told
    assert "| count | bm25 | 1 | 0.000 [0.00, 0.79] | +1.000 " in told
    assert "| ours | 1.5 | 2.0 |" in told


def test_report_of_the_page_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"number": 0, "contains": True, "f1": 0.5, "words": 3, "pages": [4, 2], "gold": [2], "seconds": 1.0}
    lines = [{"arm": "ours", "build_seconds": 1.0, "bytes": 1}, {"arm": "ours", **old}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rag.main(["report", "--out", str(tmp_path / "rows.jsonl")])
    assert (
        "| ours | 1 | 1.000 [0.21, 1.00] |  | 0.500 | 0.00 [0.00, 0.79] | 1.00 [0.21, 1.00] |"
        in capsys.readouterr().out
    )


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--data DIR"):
        rag_questions.load("pages", None)
    with pytest.raises(SystemExit, match="--embeddings DIR"):
        rag.main(["ask", "--questions", "hard", "--out", str(tmp_path / "rows.jsonl")])
    assert not (tmp_path / "rows.jsonl").exists()
