"""Needles: contexts of exact length in which a fact stands once, and answers that are right or wrong by rule."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from string import Formatter

import pytest
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from infinipot_llm.answering.prompt import PromptForm
from infinipot_llm.documents import Document
from infinipot_llm.errors import BudgetError
from infinipot_llm.evaluation import hay, hay_words
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.needle import KINDS, NEW_TOKENS, TOLERANCE, _take, needle_cases, prompt_for, score
from infinipot_llm.models.text import TextCodec

BYTES = TextCodec(byte_tokenizer())
PINNED = "needle-name-2000-30-0-22fcd403"


@pytest.fixture(scope="module")
def words(word_model: Path) -> TextCodec:
    """A tokenizer whose tokens are pieces of words."""
    return TextCodec(PreTrainedTokenizerFast.from_pretrained(word_model))


def case_of(*values: str) -> Case:
    return Case("key", "context", "question", values, "needle-number", "group")


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=\.)\s+", text) if s]


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_have_their_length_and_the_needle_once_at_its_depth(kind: str, words: TextCodec) -> None:
    depths = [0, 50, 100]
    cases = needle_cases([1500, 6000], depths, [kind], words, repeats=2)
    assert len({case.key for case in cases}) == len(cases) == 12
    for case in cases:
        tokens = len(words.untrusted(case.context))
        assert abs(tokens - case.facts["length"]) <= TOLERANCE
        assert case.facts["tokens"] == tokens
        assert case.task == f"needle-{kind}"
        assert Document.from_text(case.context).text == case.context  # reading counts the same tokens
        for value in case.references:
            assert case.context.lower().count(value.lower()) == 1
        assert abs(case.facts["position"] - case.facts["depth"] / 100) < 0.15
        assert len(case.references) == {"several": 4, "sentence": 2}.get(kind, 1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**9), depth=st.integers(0, 100), length=st.integers(1400, 3000))
def test_without_its_needle_a_context_tells_nothing(kind: str, seed: int, depth: int, length: int) -> None:
    codec = BYTES
    (case,) = needle_cases([length], [depth], [kind], codec, seed=seed)
    assert abs(len(codec.untrusted(case.context)) - length) <= TOLERANCE
    told_apart = kind not in ("single", "sentence", "several")
    assert score(case, case.context) == (0.0 if told_apart else 1.0), "who tells everything has found nothing"
    holding = [s for s in re.split(r"(?<=\.)\s+|\n", case.context) if any(v in s for v in case.references)]
    assert len(holding) == (4 if kind == "several" else 1)
    assert score(case, " ".join(holding)) == 1.0
    assert bool(case.wrong) is told_apart
    for value in case.wrong[:20]:
        assert value in case.context
        assert score(case, f"{' '.join(holding)} Or {value}.") == 0.0
    rest = case.context
    for sentence in holding:
        assert rest.count(sentence) == 1
        rest = rest.replace(sentence, "")
    assert score(case, rest) == 0.0
    assert not any(re.sub(r"\D", "", v) in re.sub(r"(?<=\d),(?=\d)", "", rest) for v in case.references if v.isdigit())
    key = re.search(r"[a-z]+-[a-z]+-\d+", case.question)
    town = key or re.search(r"\b(?:" + "|".join(hay_words.TOWNS) + r")\b", case.question)
    assert town is not None
    assert town[0] not in rest, "only the needle tells of the town that is asked about"


@pytest.mark.parametrize("shared", [4, -4])
def test_a_context_is_full_though_neighbours_share_tokens(shared: int) -> None:
    def count(text: str) -> int:  # a paragraph alone costs more, or less, than it does behind another
        return len(text) - shared * len(re.findall(r"\n\nA", text))

    def text_of(paragraphs: list[list[str]]) -> str:
        return "\n\n".join(" ".join(sentences) for sentences in paragraphs)

    source = (["A word.", "And more."] for _ in range(10_000))
    tokens = count(text_of([*_take(source, 20_000, count, text_of), []]))
    assert 20_000 - 20 <= tokens <= 20_000


def test_facts_of_the_same_form_stand_around(words: TextCodec) -> None:
    for case in needle_cases([4096], [50], ["number", "name", "several"], words, repeats=3):
        (needle, *_) = [s for s in sentences(case.context) if case.references[0] in s]
        town = re.search("|".join(hay_words.TOWNS), needle)
        assert town
        form = re.escape(needle).replace(town[0], r"\w+").replace(re.escape(case.references[0]), r"[\w, ]+")
        assert sum(re.fullmatch(form, s) is not None for s in sentences(case.context)) >= 8
    (case,) = needle_cases([4096], [50], ["key-value"], words)
    lines = re.findall(r"^\w+-\w+-\d+: \d+$", case.context, re.M)
    assert len(lines) > 150
    key = case.question.split()[-1].rstrip("?")
    shade, beast, number = key.split("-")
    near = [other for other in lines if sum(p in (shade, beast, number) for p in re.split("[-:]", other)[:3]) == 2]
    assert len(near) >= 3, "keys that differ in one part"


def test_the_same_in_every_run_and_whatever_else_is_asked_for(codec: TextCodec) -> None:
    one = needle_cases([2000], [30], ["name"], codec, seed=4)
    again = needle_cases([1500, 2000], [0, 30], KINDS, codec, seed=4, repeats=2)
    assert one[0] in again
    assert one != needle_cases([2000], [30], ["name"], codec, seed=5)
    # Pinned: results that were written down would no longer be found if texts changed without notice.
    assert one[0].key == PINNED


def test_no_sentence_twice_in_a_very_long_text() -> None:
    told: list[str] = []
    size = 0
    for paragraph in hay.paragraphs(random.Random(3), {"Calddale"}):
        told += paragraph
        size += sum(map(len, paragraph))
        if size > 128_000 * 5:
            break
    assert len(set(told)) == len(told) > 5000
    assert not any("Calddale" in sentence or "{" in sentence for sentence in told)
    assert all(sentence[0].isupper() or sentence[0].isdigit() for sentence in told)
    assert not any(re.search(r"\ba [aeio]\w|  ", sentence) for sentence in told)


def test_nothing_is_told_twice_of_a_town() -> None:
    """So that nothing can contradict itself: a town has one mill, built in one year."""
    themes = [
        (theme, re.compile(re.sub(r"\\{(\w+)\\}", lambda m: "(.+)" if m[1] == "town" else ".+", re.escape(opening))))
        for theme, variants in enumerate(hay_words.THEMES)
        for opening in variants[0]
    ]
    told = []
    for paragraph, _ in zip(hay.paragraphs(random.Random(0)), range(300), strict=False):
        ((theme, found),) = [(theme, m) for theme, form in themes if (m := form.fullmatch(paragraph[0]))]
        assert found[1] in hay_words.TOWNS
        told.append((found[1], theme))
    assert len(set(told)) == 300


def test_templates_use_known_words_and_vary() -> None:
    for theme in hay_words.THEMES:
        for sentence in (s for variants in theme for s in variants):
            fields = [name for _, name, _, _ in Formatter().parse(sentence) if name]
            assert len(fields) >= 2, sentence


@pytest.mark.parametrize(
    ("value", "answer", "found"),
    [
        ("48213", "48213", True),
        ("48213", "The code is 48213.", True),
        ("48213", "**48,213**", True),
        ("48,213", "48213 letters", True),
        ("48,213", "48.213", True),
        ("48,213", "48 213", True),
        ("48,213", "48\u202f213", True),
        ("48,213", "48'213 crowns", True),
        ("48213", "_48213_", True),
        ("48213", "#48213", True),
        ("48213", "48213.0", True),
        ("48213", "４８２１３", True),
        ("48213", "12 or 48213", True),
        ("48213", "55512, 48213 and 7", True),
        ("48213", "55512,48213", True),
        ("48213", "148213", False),
        ("48213", "482130", False),
        ("48213", "1,048,213", False),
        ("48213", "48,213,000", False),
        ("48213", "48213.5", False),
        ("48213", "1.48213", False),
        ("48213", "4 8 2 1 3", False),
        ("48213", "482 13", False),
        ("48213", "A48213", False),
        ("48213", "48213th", False),
        ("48213", "", False),
        ("48213", "48212", False),
        ("213048", "213,048", True),
        ("Ada Nunn", "it was ADA  nunn.", True),
        ("Ada Nunn", "Ada\nNunn's clock", True),
        ("Ada Nunn", "“Ada Nunn”", True),
        ("Ada Nunn", "Ada Nunnery", False),
        ("Ada Nunn", "Granada Nunn", False),
        ("Ada Nunn", "Ada Nunn-Yapp", False),
        ("Ada Nunn", "Mary-Ada Nunn", False),
        ("Ada Nunn", "Nunn, Ada", False),
        ("Ada Nunn", "Ada", False),
        ("the lion statue", "near the Lion Statue", True),
    ],
)
def test_scoring(value: str, answer: str, found: bool) -> None:
    assert score(case_of(value), answer) == float(found)


def test_an_answer_that_also_tells_a_decoy_is_wrong() -> None:
    number = replace(case_of("48213"), wrong=("55512", "90,011"))
    answers = {"48213": 1, "48213, 55512, 90011": 0, "90 011 or 48,213": 0, "48213, 155512": 1, "55512": 0}
    assert {told: score(number, told) for told in answers} == answers
    name = replace(case_of("Ada Nunn"), task="needle-name", wrong=("Bo Yapp",))
    assert [score(name, told) for told in ("Ada Nunn", "Ada Nunn, Bo Yapp", "Ada Nunn and Bo Yappley")] == [1, 0, 1]


def test_the_values_of_decoys_are_those_of_the_text_and_reach_no_row(words: TextCodec) -> None:
    for case in needle_cases([3000], [50], ["number", "name", "key-value"], words):
        assert len(case.wrong) == len(set(case.wrong)) >= 7
        assert all(value in case.context for value in case.wrong)
        assert not set(case.references) & set(case.wrong)
        assert not any(value in json.dumps(case.facts) for value in case.wrong)
    (case,) = needle_cases([3000], [50], ["key-value"], words)
    lines = dict(line.split(": ") for line in re.findall(r"^\w+-\w+-\d+: \d+$", case.context, re.M))
    assert sorted((*case.wrong, *case.references)) == sorted(lines.values())


def test_a_sentence_counts_without_its_article_and_in_the_plural(words: TextCodec) -> None:
    case = replace(case_of("plum dumpling", "marble fountain"), task="needle-sentence")
    for told in ("Eat a plum dumpling beside the marble fountain.", "Plum dumplings, beside marble fountain"):
        assert score(case, told) == 1.0
    assert score(case, "plum dumplingsy by marble fountained") == 0.0
    assert score(replace(case, task="needle-name"), "Plum dumplings") == 0.0
    for made in needle_cases([2000], [0, 50, 100], ["sentence"], words, repeats=4):
        assert not any(value.startswith(("the ", "a ")) for value in made.references)


def test_the_share_of_several_values() -> None:
    case = case_of("10001", "10002", "10003", "10004")
    assert score(case, "10001, 10002; 10003 and 10004") == 1.0
    assert score(case, "10,001, 10,003") == 0.5
    assert score(case, "1000110002") == 0.0


@given(number=st.integers(10_000, 9_999_999), other=st.integers(0, 10**12))
def test_a_number_is_found_if_and_only_if_it_is_told(number: int, other: int) -> None:
    case = case_of(f"{number:,}")
    for told in (f"{other}", f"{other:,}", f"It is {other}.", f"{other:,}".replace(",", " ")):
        assert score(case, told) == float(other == number)
    assert score(case, f"{other} {number}") == 1.0 or other < 1000 or number == other
    assert score(case, f"{other}, {number:,}!") == 1.0


@given(st.text())
def test_any_answer_has_a_score(answer: str) -> None:
    assert score(case_of("48213", "Ada Nunn"), answer) in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kinds": ["colour"]}, "key-value"),
        ({"depths": [101]}, "0 to 100"),
        ({"depths": [-1]}, "0 to 100"),
        ({"repeats": 0}, "at least 1"),
        ({"lengths": [100]}, "give at least"),
    ],
)
def test_what_cannot_be_made_is_said(codec: TextCodec, changes: dict[str, object], says: str) -> None:
    wanted = {"lengths": [2000], "depths": [50], "kinds": ["number"], "repeats": 1, **changes}
    with pytest.raises(BudgetError, match=says):
        needle_cases(codec=codec, **wanted)  # type: ignore[arg-type]


def test_the_length_that_a_refusal_names_is_enough(codec: TextCodec) -> None:
    with pytest.raises(BudgetError) as refused:
        needle_cases([200], [50], ["number"], codec)
    least = int(re.findall(r"\d+", str(refused.value))[-1])
    assert needle_cases([least + 100], [50], ["number"], codec)


def test_the_prompt_is_that_of_any_document(codec: TextCodec) -> None:
    form = PromptForm.for_tokenizer(codec)
    (case,) = needle_cases([2000], [50], ["number"], codec)
    prompt = prompt_for(form, case)
    assert prompt.before == form.prefix
    assert list(prompt.behind) == form.question(case.question)
    assert set(NEW_TOKENS) == set(KINDS)
