"""Questions from files, and one sentence for what is none."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinipot_llm import Document
from infinipot_llm.errors import BudgetError, DocumentError, InfiniPotError
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.loading import _drawn, load_cases, load_prompts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "documents"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def row(**changes: Any) -> dict[str, Any]:
    """A line of LongBench; a field given as ... is left out."""
    made = {
        "context": "The mill has two wheels.",
        "input": "How many wheels?",
        "answers": ["two", "2", "two"],
        "all_classes": None,
        "dataset": "hotpotqa",
        "_id": "one",
        "length": 5,
        **changes,
    }
    return {field: value for field, value in made.items() if value is not ...}


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "set.jsonl"
    path.write_text(
        "\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8"
    )
    return path


def test_lines_of_longbench(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        row(),
        "",
        row(_id="two", input="How old?\u2028Really?", answers=["old"], dataset="2wikimqa_e"),
        row(_id="three", context="Other.", dataset="trec", all_classes=["City", "Food"], answers=["City"], length=...),
        row(_id="four", dataset="gov_report", input="", answers=["It is about a mill."]),
    )
    one, two, three, four = load_cases(path)
    mill, asked = "The mill has two wheels.", "How many wheels?"
    assert one == Case("hotpotqa:one", mill, asked, ("two", "2"), "hotpotqa", one.group, facts={"length": 5})
    assert (two.key, two.task, two.question) == ("2wikimqa:two", "2wikimqa", "How old?\nReally?")
    assert (three.task, three.classes, three.facts) == ("trec", ("City", "Food"), {})
    assert (four.task, four.question) == ("gov_report", "")
    assert one.group == two.group == four.group != three.group  # by context
    assert {case.task for case in load_cases(path, task="multi_news")} == {"multi_news"}


def test_a_line_without_a_name_is_called_by_its_number(tmp_path: Path) -> None:
    path = lines(tmp_path, "", row(_id=...), row(_id=""))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # some editors' mark
    assert [case.key for case in load_cases(path)] == ["hotpotqa:2", "hotpotqa:3"]


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("{'context'}", "line 2: this is no JSON"),
        ("[1, 2]", "line 2: this is no JSON object"),
        ("null", "line 2: this is no JSON object"),
        ("[" * 200_000, "line 2: this JSON is beyond"),
        ('{"length": ' + "9" * 5000 + "}", "line 2: this JSON is beyond"),
        (row(context=...), "line 2: the field context is missing"),
        (row(context="  "), "line 2: the field context is empty"),
        (row(context=7), "line 2: the field context is missing or no text"),
        (row(input=...), "line 2: the field input is missing"),
        (row(input=""), "line 2: the field input is empty, and hotpotqa needs a question"),
        (row(answers="two"), "line 2: the field answers is missing or no list of texts"),
        (row(answers=[]), "line 2: the field answers"),
        (row(answers=[" "]), "line 2: the field answers"),
        (row(dataset=...), "line 2: the field dataset is missing"),
        (row(dataset="vcsum"), "line 2: the task 'vcsum' is unknown; name one of qa, narrativeqa"),
        (row(dataset="trec"), "line 2: the field all_classes"),
        (row(all_classes="City"), "line 2: the field all_classes is missing or no list"),
        (row(_id="first"), "two questions of the name 'hotpotqa:first'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: Any, sentence: str) -> None:
    path = lines(tmp_path, row(_id="first"), broken)
    with pytest.raises(DocumentError, match=sentence) as caught:
        load_cases(path)
    assert "set.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.json", b"", "is empty"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00\xff", "is no text in UTF-8"),
        ("a.json", b'{"data": [}', "this is no JSON"),
        ("a.json", b'{"data":\n [}\n', "line 2: this is no JSON"),
        ("a.json", b"[]", "the field data is missing or no list; is this a file of SQuAD's form"),
        ("a.json", b'{"data": [{"paragraphs": [3]}]}', r"data\[0\].paragraphs\[0\]: the field qas"),
        ("a.json", b'{"data": []}', "holds no questions with answers"),
        ("a.json", b'{"data": [{"paragraphs": [{"context": "x", "qas": []}]}]}', "holds no questions with answers"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DocumentError, match=sentence) as caught:
        load_cases(tmp_path / name)
    assert name in str(caught.value)


def test_what_is_not_there_and_what_is_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="does not exist"):
        load_cases(tmp_path / "nothing.jsonl")
    with pytest.raises(DocumentError, match=r"holds no questions: put NAME.questions.jsonl beside"):
        load_cases(tmp_path)
    path = lines(tmp_path, row())
    for settings, sentence in (
        ({"limit": 0}, "limit is 0"),
        ({"join": True}, "join is True"),
        ({"task": "vcsum"}, "no task 'vcsum'"),
        ({"join": 100}, "no SQuAD file"),
    ):
        with pytest.raises(BudgetError, match=sentence):
            load_cases(path, **settings)
    with pytest.raises(BudgetError, match="no SQuAD file"):
        load_cases(tmp_path, join=100)


def squad(folder: Path, articles: list[list[str]]) -> Path:
    """A file with two questions on every paragraph, and one that has no answer."""
    data = []
    for a, paragraphs in enumerate(articles):
        rows = []
        for p, text in enumerate(paragraphs):
            qas = [
                {"id": f"{a}{p}{q}", "question": f"What {q}?", "answers": [{"text": "it", "answer_start": 0}] * 2}
                for q in range(2)
            ]
            no = {"id": f"{a}{p}n", "question": "No?", "answers": [{"text": "it"}] * p, "is_impossible": True}
            rows.append({"context": text, "qas": [*qas, no]})
        data.append({"title": f"t{a}", "paragraphs": rows})
    path = folder / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": data}), encoding="utf-8")
    return path


def test_squad_paragraph_by_paragraph(tmp_path: Path) -> None:
    cases = load_cases(squad(tmp_path, [["one", "two"], ["three"]]))
    assert [(c.key, c.context, c.group) for c in cases] == [
        ("000", "one", "a0"), ("001", "one", "a0"), ("010", "two", "a0"), ("011", "two", "a0"),
        ("100", "three", "a1"), ("101", "three", "a1"),
    ]  # fmt: skip
    assert {(c.task, c.references, c.question[:5]) for c in cases} == {("qa", ("it",), "What ")}


def test_squad_joined(tmp_path: Path) -> None:
    path = squad(tmp_path, [["a" * 40, "b" * 40], ["c" * 40, "d" * 40, "e" * 10]])
    cases = load_cases(path, join=80)
    assert list(dict.fromkeys(c.context for c in cases)) == [
        "a" * 40 + "\n\n" + "b" * 40,
        "c" * 40 + "\n\n" + "d" * 40 + "\n\n" + "e" * 10,  # a short rest joins the last
    ]
    assert [c.group for c in cases] == ["a0"] * 4 + ["a1"] * 6
    assert [c.facts["document"] for c in cases] == [0] * 4 + [1] * 6
    assert not {c.key for c in cases} & {c.key for c in load_cases(path, join=100)}  # other contexts, other cases
    assert {c.group for c in load_cases(path, join=10_000)} == {"a0", "a1"}  # one document of two articles


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(1, 150))
def test_joining_keeps_every_paragraph_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], join: int
) -> None:
    paragraphs = [[chr(97 + a) * n for n in article] for a, article in enumerate(sizes)]
    cases = load_cases(squad(tmp_path_factory.mktemp("squad"), paragraphs), join=join)
    documents = list({c.facts["document"]: c.context for c in cases}.values())
    assert "\n\n".join(documents) == "\n\n".join(text for article in paragraphs for text in article)
    assert all(len(text) >= join for text in documents) or len(documents) == 1 or len(documents[-1]) >= join / 2
    assert all(c.facts["characters"] == len(c.context) < join + 60 + join / 2 + 4 for c in cases)


def folder_of_pdfs(folder: Path) -> Path:
    for name in ("hollin_valley.pdf", "hollin_valley.questions.jsonl"):
        shutil.copy(EXAMPLES / name, folder / name)
    return folder


def test_a_folder_of_pdfs(tmp_path: Path) -> None:
    cases = load_cases(folder_of_pdfs(tmp_path))
    rows = [json.loads(x) for x in (EXAMPLES / "hollin_valley.questions.jsonl").read_text("utf-8").split("\n") if x]
    document = Document.from_file(EXAMPLES / "hollin_valley.pdf")
    assert [(c.question, c.references, c.facts["page"]) for c in cases] == [
        (r["question"], tuple(r["answers"]), r["page"]) for r in rows
    ]
    assert {c.context for c in cases} == {document.text}
    assert {c.task for c in cases} == {"qa"}
    assert [c.key for c in cases] == [f"hollin_valley:{n}" for n in range(1, len(rows) + 1)]
    assert [c.group for c in cases] == [f"hollin_valley p. {r['page']}" for r in rows]
    assert load_cases(tmp_path / "hollin_valley.pdf") == cases


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"question": "?"}, "line 1: the field answers is missing"),
        ({"answer": "x"}, "line 1: the field question is missing"),
        ({"question": "?", "answer": 3}, "line 1: the field answer is missing or no text"),
        ({"question": "?", "answer": "x", "page": 0}, "line 1: the page 0 is none of hollin_valley.pdf, which has"),
        ({"question": "?", "answer": "x", "page": 10_000}, "line 1: the page 10000"),
        ({"question": "?", "answer": "x", "page": True}, "line 1: the page True"),
    ],
)
def test_a_broken_question_is_named(tmp_path: Path, line: dict[str, Any], sentence: str) -> None:
    file = folder_of_pdfs(tmp_path) / "hollin_valley.questions.jsonl"
    file.write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(DocumentError, match=sentence):
        load_cases(tmp_path)


def test_questions_without_their_pdf_and_damaged_pdfs(tmp_path: Path) -> None:
    (tmp_path / "report.questions.jsonl").write_text(json.dumps({"question": "?", "answer": "x"}), encoding="utf-8")
    with pytest.raises(DocumentError, match=r"has no report\.pdf beside it"):
        load_cases(tmp_path)
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7\nnothing")
    with pytest.raises(DocumentError, match=r"report\.pdf"):
        load_cases(tmp_path)
    (tmp_path / "report.questions.jsonl").unlink()
    with pytest.raises(DocumentError, match=r"report\.questions\.jsonl does not exist"):
        load_cases(tmp_path / "report.pdf")


def test_prompts_of_longbenchs_form(tmp_path: Path) -> None:
    path = tmp_path / "dataset2prompt.json"
    path.write_text(json.dumps({"qasper": "{context}: {input}"}), encoding="utf-8")
    assert load_prompts(path) == {"qasper": "{context}: {input}"}
    for content in ("[]", "{}", '{"qasper": 3}'):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DocumentError, match="holds no prompts"):
            load_prompts(path)


def cases_of(sizes: list[int]) -> list[Case]:
    return [Case(f"{c}.{q}", f"context {c}", "?", ("x",), "qa", "g") for c, n in enumerate(sizes) for q in range(n)]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(1, 60))
def test_limit_draws_evenly_over_contexts(sizes: list[int], limit: int) -> None:
    cases = cases_of(sizes)
    drawn = _drawn(cases, limit)
    assert len(drawn) == min(limit, len(cases))
    assert drawn == [case for case in cases if case in drawn]  # in their order, none twice
    taken = Counter(case.context for case in drawn)
    for index, size in enumerate(sizes):
        here = taken[f"context {index}"]
        assert here == size or here >= max(taken.values()) - 1
    assert _drawn(cases, limit) == drawn


def test_limit_spreads() -> None:
    assert [case.key for case in _drawn(cases_of([2] * 8), 4)] == ["0.0", "2.0", "4.0", "6.0"]
    assert [case.key for case in _drawn(cases_of([6, 1]), 4)] == ["0.0", "0.2", "0.4", "1.0"]


def test_real_sets() -> None:
    if not (DATA / "qa").is_dir():
        pytest.skip("the question sets are not here: ../shared/data/qa is absent")
    cases = load_cases(DATA / "qa" / "xquad.en.dev.json", join=16_000, limit=50)
    assert len(cases) == 50
    assert all(len(case.context) >= 8_000 for case in cases)  # the last document is what is left
    assert len({case.context for case in cases if len(case.context) >= 16_000}) == 5
    assert all(any(answer in case.context for answer in case.references) for case in cases)
    for path in sorted((DATA / "qa").iterdir()):  # of other forms: a sentence
        if path.name != "xquad.en.dev.json":
            with pytest.raises(InfiniPotError) as caught:
                load_cases(path)
            assert path.name in str(caught.value)


def test_what_no_tokenizer_takes_stops_no_run(tmp_path: Path) -> None:
    """Half of an emoji, where somebody cut a text, would end a run of hours at this question, and the next one."""
    half, mark = r"\ud83d", r"\ufeff"
    cut = json.dumps(row()).replace("The mill", f"The {half} mill").replace("How many", f"How{half} many")
    (case,) = load_cases(lines(tmp_path, cut))
    assert case.context == "The \ufffd mill has two wheels."
    assert case.question == "How\ufffd many wheels?"
    for field, value in (("context", mark), ("input", mark + r"\u0001")):
        empty = json.dumps(row(**{field: "EMPTY"})).replace("EMPTY", value)
        with pytest.raises(DocumentError, match=f"{field} is empty|needs a question"):
            load_cases(lines(tmp_path, empty))
