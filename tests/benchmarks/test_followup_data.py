"""The documents and questions of the follow-up benchmark, and what answers are scored by."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinipot_llm import Document
from infinipot_llm.evaluation.metrics import contains

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import followup_data
from followup_data import Question, Sample, absent, covered, f1, merged

DATA = Path(__file__).parents[3] / "shared" / "data"

# Of the documents that the first measurements were made on: SHA-256 of text and questions, and questions by kind.
FIRST_MEASURED = {
    "cal": ("ae3e5eeee62ea563ce1c0041a36cb207531c4b49b273b09a89e7d91ed73e0f16", {"xquad": 123, "nq": 45, "hotpot": 5}),
    "A4": ("cad84f0e627c9b64be06d128c99b1384ef275caf277ce9d88f0bef0d43bd2ed9", {"xquad": 49, "nq": 12, "hotpot": 4}),
    "B4": ("dfcb8844a9de809f04aa9735f170458cd8fd8b911c9edd3f87ff733682a368c9", {"xquad": 47, "nq": 12, "hotpot": 4}),
    "m16": ("3a7b6989693c2b3624ff293253054e4d107fd904ec98a2879ae25cd19d8fbdfa", {"xquad": 246, "nq": 44, "hotpot": 8}),
    "m30": ("f64f7f89a4f93246f920365202ce36ab0e31326784fd8843dd3275a33279d436", {"xquad": 448, "nq": 64, "hotpot": 14}),
    "x8": ("826e0d7ad68bb487be6dd988f433d9bb7df249cdaee694ea70fa8ed93f43c721", {"xquad": 260}),
    "n8": ("3d15c5eb229f36955433cd94dea4033e2bbf0b2e2b052f6bada554276e509466", {"nq": 75}),
    "h30": ("230d20f23c6fd4428529fc0165e2046cf127ea99a2b57cb9933ea7c393d997e6", {"hotpot": 45}),
    "n130": ("720752dc28a342e4dd8367695d4855d1d61a44cb6238686c22906feae27782e3", {"nq": 1196}),
}


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    if not (DATA / "qa" / "nq.dev.jsonl.gz").exists():
        pytest.skip("the question sets are not here: ../shared/data/qa is absent")
    return followup_data.load(DATA)


@pytest.mark.parametrize("name", FIRST_MEASURED)
def test_documents_and_questions_stay_those_of_the_first_measurements(samples: dict[str, Sample], name: str) -> None:
    sample = samples[name]
    asked = [[q.kind, q.group, q.question, q.answers, q.gold] for q in sample.questions]
    digest = hashlib.sha256(json.dumps([sample.text, asked]).encode()).hexdigest()
    assert (digest, Counter(q.kind for q in sample.questions)) == FIRST_MEASURED[name]


def test_short_texts_are_the_first_paragraphs_of_articles_that_calibrated_nothing(samples: dict[str, Sample]) -> None:
    groups = {question.group for question in samples["cal"].questions}
    for paragraphs in (2, 5):
        texts = followup_data.short(DATA, paragraphs)
        assert len(texts) == 18
        for text in texts:
            assert text.text.count(followup_data.BETWEEN) == paragraphs - 1
            assert not groups & {question.group for question in text.questions}
            for question in text.questions:
                assert any(text.text[a:b] in question.answers for a, b in question.gold)


def test_gold_ranges_hold_the_evidence(samples: dict[str, Sample]) -> None:
    for sample in samples.values():
        assert Document.from_text(sample.text).text == sample.text  # so that the ranges stay right after loading
        for question in sample.questions:
            evidence = [sample.text[start:end] for start, end in question.gold]
            assert evidence
            assert all(evidence)
            if question.kind == "hotpot":
                assert len(evidence) >= 2
                assert all(piece == piece.lstrip() and piece.rstrip()[-1] in ".)\"'" for piece in evidence)
            else:
                assert len(evidence) == 1
                assert contains(evidence[0], question.answers)


def test_calibration_shares_no_source_with_the_others(samples: dict[str, Sample]) -> None:
    groups = {name: {q.group for q in sample.questions} for name, sample in samples.items()}
    assert not groups["cal"] & set().union(*(groups[name] for name in groups if name != "cal"))
    assert not groups["n130"] & groups["m30"]
    assert groups["n8"] < groups["n130"]
    assert not groups["A4"] & groups["B4"]
    assert groups["A4"] | groups["B4"] < groups["m16"] < groups["m30"]
    assert groups["x8"] < groups["m30"]


def test_the_longest_document_holds_a_passage_once(samples: dict[str, Sample]) -> None:
    paragraphs = samples["n130"].text.split(followup_data.BETWEEN)
    assert len(set(paragraphs)) == len(paragraphs) > 1100
    assert set(samples["n8"].text.split(followup_data.BETWEEN)) <= set(paragraphs)


def test_absent_questions_of_real_documents(samples: dict[str, Sample]) -> None:
    missing = absent(samples["A4"], samples.values())
    by_kind = Counter(q.kind for q in missing)
    assert by_kind["xquad"] > 400
    assert by_kind["nq"] > 100
    assert {q.group for q in missing}.isdisjoint(q.group for q in samples["A4"].questions)


def test_stories_with_questions_on_the_whole() -> None:
    if not (DATA / "qa" / "squality.dev.jsonl").exists():
        pytest.skip("the stories are not here: ../shared/data/qa is absent")
    stories = followup_data.squality(DATA)
    assert len(stories) == 25
    assert len({story.text for story in stories}) == len({story.name for story in stories}) == 25
    for story in stories:
        assert len({q.group for q in story.questions}) == 1
        assert all(q.gold == () and len(q.answers) == 4 and q.kind == "squality" for q in story.questions)


def sample(name: str, text: str, *questions: Question) -> Sample:
    return Sample(name, text, questions)


def asked(group: str, question: str, *gold: tuple[int, int]) -> Question:
    return Question("nq", group, question, ("an answer",), gold)


def test_absent_looks_at_the_paragraphs_of_the_evidence() -> None:
    here = sample("here", "Red.\n\nGreen.", asked("r", "red?", (0, 3)))
    other = sample(
        "other",
        "Blue.\n\nGreen.\n\nGrey. Green. Red.",
        asked("b", "blue?", (0, 4)),
        asked("g", "green?", (7, 12)),  # its paragraph is here, as a paragraph without a question
        asked("r", "red too?", (0, 4)),  # of a source that is here
        asked("y", "red?", (29, 32)),  # the same words in another paragraph: not here
    )
    missing = absent(here, [here, other, other])
    assert [(q.group, q.question, q.gold) for q in missing] == [("b", "blue?", ()), ("y", "red?", ())]
    assert missing[0].answers == ("an answer",)


def test_f1_is_that_of_the_best_reference() -> None:
    assert f1("the Denver Broncos", ["Broncos of Denver", "Denver"]) == pytest.approx(0.8)
    assert f1("a Denver", ["Denver Broncos"]) == pytest.approx(2 / 3)
    assert f1("go go go", ["go"]) == pytest.approx(0.5)
    assert f1("nothing", ["Denver"]) == 0.0
    assert f1("The", ["a"]) == 1.0
    assert f1("The", ["Denver"]) == 0.0


def test_merged_joins_what_overlaps_or_touches() -> None:
    assert merged([(8, 9), (0, 3), (3, 5), (4, 6), (1, 2), (7, 7)]) == [(0, 6), (8, 9)]
    assert merged([]) == []


def test_covered_joins_ranges() -> None:
    assert covered([(5, 9), (0, 5)], [(2, 8)])
    assert not covered([(0, 5), (6, 9)], [(2, 8)])
    assert covered([(0, 5), (6, 9)], [(2, 8)], at_least=5 / 6)
    assert not covered([(0, 9)], [(2, 8), (20, 21)])
    assert covered([(0, 6), (0, 6)], [(0, 12)], at_least=0.5)
    assert not covered([(0, 4), (0, 4)], [(0, 12)], at_least=0.5)  # nothing counts twice
    with pytest.raises(ValueError, match="no gold"):
        covered([(0, 9)], [])


def test_two_hops_need_half_of_every_supporting_sentence() -> None:
    gold = ((0, 10), (20, 30))
    assert Question("hotpot", "h", "?", (), gold).is_covered([(5, 25)])
    assert not Question("hotpot", "h", "?", (), gold).is_covered([(0, 24)])
    assert not Question("xquad", "x", "?", (), gold).is_covered([(5, 25)])


ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda r: (min(r), max(r))), max_size=8)


@given(ranges, ranges.filter(bool))
def test_covered_agrees_with_counting_characters(found: list[tuple[int, int]], gold: list[tuple[int, int]]) -> None:
    held = {i for a, b in found for i in range(a, b)}
    assert {i for a, b in merged(found) for i in range(a, b)} == held
    assert covered(found, gold) == all(i in held for a, b in gold for i in range(a, b))
    assert covered(found, gold, 0.5) == all(2 * len(held & set(range(a, b))) >= b - a for a, b in gold)
