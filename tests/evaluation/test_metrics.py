"""Metrics against values that are worked by hand, and answers that mean no good."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinipot_llm.errors import ModelError
from infinipot_llm.evaluation import metrics
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.metrics import (
    classification,
    code_similarity,
    contains,
    count,
    exact_match,
    normalise,
    retrieval,
    rouge_l,
    score,
    scores,
    string_match_all,
    string_match_part,
    token_f1,
)
from infinipot_llm.evaluation.tasks import TASKS

HOSTILE = [
    "",
    " ",
    "\n\n",
    ".",
    "...",
    "?!",
    "`",
    "# //",
    "\u200b",
    "é",
    "e\u0301",
    "答案",
    "😀",
    "a",
    "The",
    "\x00",
    "7" * 5000,
]
LABELS = ("Food", "Food and drink", "Person", "City")


def case(task: str, *references: str, classes: tuple[str, ...] = ()) -> Case:
    return Case("k", "context", "question", references, task, "g", classes)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Quick,\nbrown fox!", "quick brown fox"),
        ("An apple a day", "apple day"),
        ("Theatre and another", "theatre and another"),
        ("1914–1918 (“Great War”)", "19141918 great war"),
        ("$1,000", "1000"),
        ("the", ""),
        ("Cafe\u0301", "café"),
        ("答案是北京。", "答 案 是 北 京"),
        ("「東京タワー」は333m", "東 京 タ ワ ー は 333m"),
        ("𠮷野家", "𠮷 野 家"),
        ("\u1109\u1165\u110b\u116e\u11af", "서 울"),  # jamo
        ("维生素A", "维 生 素 a"),
    ],
)
def test_normalise(text: str, wanted: str) -> None:
    assert normalise(text) == wanted


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("It was the Denver Broncos, again.", ["Denver Broncos"], True),
        ("It was the denver broncos", ["the Denver Broncos!"], True),
        ("Denver's own Broncos", ["Denver Broncos"], False),
        ("in 1999", ["19", "99"], False),
        ("in 1999", ["1998", "1999"], True),
        ("", ["x"], False),
        ("anything at all", ["The", ""], False),
        ("anything", [], False),
        ("答案是北京。", ["北京"], True),
        ("答案是南京。", ["北京"], False),
        ("1998年です", ["1998年"], True),
        ("1998年です", ["998年"], False),
        ("维生素C", ["维生素A"], False),
        ("수도는 서울입니다.", ["서울"], True),
        ("수도는 부산입니다.", ["서울"], False),
        ("It is Zu\u0308rich.", ["Z\u00fcrich"], True),
        ("It is Z\u00fcrich.", ["Zu\u0308rich"], True),
    ],
)
def test_contains(answer: str, references: list[str], wanted: bool) -> None:
    assert contains(answer, references) is wanted


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("The Denver Broncos!", ["denver broncos"], True),
        ("Denver", ["Denver Broncos"], False),
        ("Broncos", ["Denver", "broncos."], True),
        ("...", ["The"], False),  # both normalise to nothing
        ("", [""], False),
    ],
)
def test_exact_match(answer: str, references: list[str], wanted: bool) -> None:
    assert exact_match(answer, references) is wanted


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("the Denver Broncos", ["Broncos of Denver", "Denver"], 0.8),  # 2 in common of 2 and 3; the other: 1 of 2, 1
        ("a Denver", ["Denver Broncos"], 2 / 3),  # 1 in common of 1 and 2
        ("go go go", ["go"], 0.5),  # a word counts as often as it stands in both: 1 of 3 and 1
        ("go go", ["go, go!"], 1.0),
        ("nothing", ["Denver"], 0.0),
        ("", [""], 0.0),  # nothing in common, as LongBench has it
        ("The", ["a"], 0.0),
        ("?!", ["Denver"], 0.0),
        ("“Denver”", ["Denver"], 0.0),  # punctuation beyond ASCII stays
        ("élan vital", ["Élan"], 2 / 3),
        ("anything", [], 0.0),
        ("答案是北京。", ["北京"], 4 / 7),  # letters are words: 2 of 5 and 2; the full stop is none
        ("北京", ["北京"], 1.0),
        ("「東京」です", ["大阪"], 0.0),
        ("서울입니다.", ["서울"], 4 / 7),  # syllables
        ("Cafe\u0301", ["caf\u00e9"], 1.0),
    ],
)
def test_token_f1(answer: str, references: list[str], wanted: float) -> None:
    assert token_f1(answer, references) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        # In order: the, cat, on, mat = 4; distinct words: 5 (the cat lay on mat) and 5 (the cat sat on mat).
        # The reference's "the ... the" counts once, as the package counts distinct words.
        ("the cat lay on the mat", ["the cat sat on the mat"], 0.8),
        ("one two three", ["one three"], 2 * (2 / 3) * 1 / (2 / 3 + 1)),  # 2 of 3 words, 2 of 2
        ("three one", ["one two three"], 2 * 0.5 * (1 / 3) / (0.5 + 1 / 3)),  # 1 of 2 in order, 1 of 3
        ("Cat", ["cat"], 0.0),  # case counts
        ("a b. c d.", ["c d. a b."], 1.0),  # sentences may change places
        ("x", ["one two", "x y"], 2 * 1 * 0.5 / 1.5),
        ("", ["one"], 0.0),
        ("...", ["one"], 0.0),
        (" ", ["one"], 0.0),
        ("one", ["..."], 0.0),
        ("one", [], 0.0),
        ("東京 は 首都", ["東京 が 首都"], 2 / 3),
    ],
)
def test_rouge_l(answer: str, references: list[str], wanted: float) -> None:
    pytest.importorskip("rouge", reason="the package rouge is not installed: pip install rouge")
    assert rouge_l(answer, references) == pytest.approx(wanted, abs=1e-6)


def test_rouge_l_of_texts_without_full_stops() -> None:
    """The package recurses once per word: 1,400 of them are more than Python allows."""
    pytest.importorskip("rouge", reason="the package rouge is not installed: pip install rouge")
    before = sys.getrecursionlimit()
    said, told = [f"w{i}" for i in range(600)], [f"w{i}" for i in range(0, 1600, 2)]  # w0, w2, ..., w598 are in both
    assert rouge_l(" ".join(said), [" ".join(told)]) == pytest.approx(2 * 300 / (600 + 800), abs=1e-6)
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("It is a City.", ["City"], 1.0),
        ("City or Person", ["City"], 0.5),  # two labels named
        ("City, Person, Food", ["City"], 1 / 3),
        ("Food and drink", ["Food and drink"], 1.0),  # "Food" is part of the right label
        ("Food and drink", ["Food"], 0.5),  # "Food and drink" is no part of "Food"
        ("Food", ["Food and drink"], 0.0),
        ("city", ["City"], 0.0),  # case counts
        ("City Food", ["Person", "Food"], 0.5),
        ("", ["City"], 0.0),
        ("City", ["Town"], 0.0),  # a right answer that is no label
    ],
)
def test_classification(answer: str, references: list[str], wanted: float) -> None:
    assert classification(answer, references, LABELS) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("Paragraph 7", ["Paragraph 7"], 1.0),
        ("Paragraph 7 or 12", ["Paragraph 7"], 0.5),
        ("7, 7, 17", ["Paragraph 7"], 2 / 3),
        ("77", ["Paragraph 7"], 0.0),
        ("seven", ["Paragraph 7"], 0.0),
        ("", ["Paragraph 7"], 0.0),
        ("7", ["seven"], 0.0),
    ],
)
def test_retrieval(answer: str, references: list[str], wanted: float) -> None:
    assert retrieval(answer, references) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("There are 12 of 30.", ["12"], 0.5),
        ("12", ["12"], 1.0),
        ("012", ["12"], 0.0),
        ("1.2", ["12"], 0.0),  # the numbers 1 and 2
        ("a dozen", ["12"], 0.0),
        ("3 4", ["4", "5"], 0.5),
    ],
)
def test_count(answer: str, references: list[str], wanted: float) -> None:
    assert count(answer, references) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("x = 1", ["x = 1"], 1.0),
        ("\n\nx = 1\ny = 2", ["x = 1"], 1.0),  # the first line
        ("```python\n# adds\n// adds\nx = 1", ["x = 1"], 1.0),  # the first that is code
        ("x = 1", ["x = 2"], 0.8),  # 4 of 5 characters: 2 * 4 / 10
        ("abc", ["abcd"], 0.86),  # 2 * 3 / 7 = 0.857..., in whole percents
        ("abc", ["xyz"], 0.0),
        ("```\n# nothing else", ["x = 1"], 0.0),
        ("", ["x = 1"], 0.0),
        ("\n  \nx = 1", ["x = 1"], 0.57),  # a line of two blanks is code: 2 * 2 / 7 = 0.571...
        ("x = 'é'", ["x = 'e'"], 0.86),  # 6 of 7: 12 / 14
    ],
)
def test_code_similarity(answer: str, references: list[str], wanted: float) -> None:
    pytest.importorskip("rapidfuzz", reason="the package rapidfuzz is not installed: pip install rapidfuzz")
    assert code_similarity(answer, references) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "references", "all_", "part"),
    [
        ("The numbers are 12 and 34.", ["12", "34"], 1.0, 1.0),
        ("The number is 123.", ["12", "34"], 0.5, 1.0),  # RULER looks for characters, not words
        ("DENVER", ["Denver"], 1.0, 1.0),
        ("", ["12"], 0.0, 0.0),
        ("12", [], 0.0, 0.0),
    ],
)
def test_string_match(answer: str, references: list[str], all_: float, part: float) -> None:
    assert string_match_all(answer, references) == pytest.approx(all_)
    assert string_match_part(answer, references) == pytest.approx(part)


BY_REFERENCES: list[Callable[..., Any]] = [
    contains, exact_match, token_f1, rouge_l, retrieval, count, code_similarity, string_match_all, string_match_part
]  # fmt: skip


@pytest.mark.parametrize("metric", BY_REFERENCES)
def test_whatever_is_said_the_score_is_a_fraction(metric: Callable[..., Any]) -> None:
    if metric in (rouge_l, code_similarity):
        pytest.importorskip("rouge" if metric is rouge_l else "rapidfuzz")
    for answer in HOSTILE:
        for reference in HOSTILE:
            assert 0.0 <= metric(answer, [reference]) <= 1.0
        assert metric(answer, HOSTILE) == max(metric(answer, [r]) for r in HOSTILE) or metric is string_match_all
        assert 0.0 <= classification(answer, HOSTILE, HOSTILE) <= 1.0


words = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "the", "."]), max_size=8).map(" ".join)


@given(words, words)
def test_token_f1_and_containment_agree(answer: str, reference: str) -> None:
    assert token_f1(answer, [reference]) == pytest.approx(token_f1(reference, [answer]))
    if exact_match(answer, [reference]):
        assert token_f1(answer, [reference]) == 1.0
        assert contains(answer, [reference])
    if contains(answer, [reference]):
        assert token_f1(answer, [reference]) > 0


def test_only_the_first_line_is_scored_where_the_task_says_so() -> None:
    said = "\n\nDenver\nPassage: the Broncos of Denver"
    assert score(TASKS["triviaqa"], said, case("triviaqa", "Denver")) == 1.0
    assert score(TASKS["hotpotqa"], said, case("hotpotqa", "Denver")) == pytest.approx(2 / 6)  # 1 of 5 words and 1
    assert score(TASKS["trec"], " City\nPerson", case("trec", "City", classes=LABELS)) == 1.0
    assert score(TASKS["trec"], "x\nCity", case("trec", "City", classes=LABELS)) == 0.0


def test_a_line_of_code_is_scored_with_its_indentation() -> None:
    """And nothing else with the white space around it."""
    pytest.importorskip("rapidfuzz", reason="the package rapidfuzz is not installed: pip install rapidfuzz")
    for task in ("lcc", "repobench-p"):
        assert score(TASKS[task], "\n    return x\n    y = 1", case(task, "    return x")) == 1.0
        assert score(TASKS[task], "return x", case(task, "    return x")) == pytest.approx(0.8)  # 2 * 8 / 20
    for task in TASKS.values():
        right = {"retrieval": "Paragraph 3", "count": "3", "classification": "City"}.get(task.metric, "ten wheels")
        asked = case(task.name, right, classes=LABELS if task.metric == "classification" else ())
        if task.metric not in ("code_similarity", "rouge_l"):
            before = "\n\n" if task.first_line else " \n\t"
            assert score(task, f"{before}{right}\n ", asked) == 1.0, task.name
        if task.metric == "classification":
            assert score(task, f" \n{right}", asked) == 0.0  # as LongBench has it: the first line is a blank


def test_our_own_questions_have_two_scores() -> None:
    found = scores(TASKS["qa"], "It was in Denver.", case("qa", "Denver"))
    assert found == {"contains": 1.0, "token_f1": pytest.approx(0.4)}  # 1 of 4 words and 1
    assert list(found) == ["contains", "token_f1"]
    assert score(TASKS["qa"], "It was in Denver.", case("qa", "Denver")) == 1.0


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: str(task.name))
def test_every_task_can_be_scored(task: Any) -> None:
    """The right answer scores 1, another 0."""
    if task.metric in ("rouge_l", "code_similarity"):
        pytest.importorskip("rouge" if task.metric == "rouge_l" else "rapidfuzz")
    right = {"retrieval": "Paragraph 3", "count": "3", "classification": "City"}.get(task.metric, "ten wheels")
    asked = case(task.name, right, classes=LABELS if task.metric == "classification" else ())
    assert score(task, right, asked) == pytest.approx(1.0)
    assert score(task, "zzz", asked) == 0.0


@pytest.mark.parametrize(("package", "metric"), [("rouge", rouge_l), ("rapidfuzz", code_similarity)])
def test_a_missing_library_is_said_in_a_sentence(
    package: str, metric: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"package {package}, which is not installed: pip install .*eval"):
        metric("a", ["b"])


def test_every_metric_of_a_task_is_known() -> None:
    names = {*metrics._BY_REFERENCES, "classification"}
    assert {m for task in TASKS.values() for m in (task.metric, *task.also)} <= names
