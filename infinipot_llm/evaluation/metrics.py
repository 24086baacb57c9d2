"""How well an answer fits the right ones, as a fraction from 0 to 1: the metrics of LongBench, of RULER, and SQuAD's.

    token_f1         words in common with the right answer (LongBench: question answering)
    rouge_l          longest common subsequence of words (LongBench: summaries)
    classification   the right label is named, and few others (LongBench: trec)
    retrieval        share of the numbers in the answer that are the right paragraph's (LongBench)
    count            share of the numbers in the answer that are right (LongBench)
    code_similarity  likeness of the first line of code (LongBench: lcc, repobench-p)
    string_match_all, string_match_part
                     share of the right answers told, whether any is (RULER)
    contains, exact_match
                     the words of a right answer stand in the answer, are the answer (SQuAD's normalisation)

All take the answer and the right ones, and count by the one that fits best, unless they say otherwise. No right answer
at all scores 0.
"""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from infinipot_llm.errors import ModelError

if TYPE_CHECKING:
    from infinipot_llm.evaluation.cases import Case
    from infinipot_llm.evaluation.tasks import Task

Metric: TypeAlias = Literal[
    "token_f1",
    "rouge_l",
    "classification",
    "retrieval",
    "count",
    "code_similarity",
    "string_match_all",
    "string_match_part",
    "contains",
    "exact_match",
]

_EAST_ASIAN = re.compile(r"[\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3\uff66-\uff9f\U00020000-\U0003ffff]")
"""A letter of Chinese, Japanese (half-width too) or Korean; of Korean a whole syllable, as NFC puts them together."""

_NO_CODE = ("`", "#", "//")
"""A line that holds one of these is a fence or a comment."""


def score(task: Task, prediction: str, case: Case) -> float:
    """Score an answer by its task's own metric, after cutting it to the first line where the task wants that.

    Raises:
        ModelError: The library that the metric needs is not installed.
    """
    return _measure(task.metric, _scored_part(task, prediction), case)


def scores(task: Task, prediction: str, case: Case) -> dict[str, float]:
    """Score an answer by all metrics of its task, the task's own first.

    Raises:
        ModelError: The library that a metric needs is not installed.
    """
    part = _scored_part(task, prediction)
    return {metric: _measure(metric, part, case) for metric in (task.metric, *task.also)}


def normalise(text: str) -> str:
    """Normalise an answer as SQuAD does: lower case, no punctuation (of any script), no articles, single blanks.

    Letters of Chinese, Japanese and Korean are words of their own, as nothing parts their words, or an ending follows.
    """
    text = unicodedata.normalize("NFC", text.lower())  # as documents are
    return _words("".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P"))


def contains(answer: str, references: Iterable[str]) -> bool:
    """Whether the whole words of a reference, normalised, stand in the answer, side by side.

    It rewards long answers: report `token_f1` beside it. A reference that normalises to nothing ("The") is never found.
    """
    said = f" {normalise(answer)} "
    return any(wanted in said for reference in references if (wanted := f" {normalise(reference)} ").strip())


def exact_match(answer: str, references: Iterable[str]) -> bool:
    """Whether the answer, normalised, is a reference; one that normalises to nothing is never met."""
    said = normalise(answer)
    return bool(said) and any(said == normalise(reference) for reference in references)


def token_f1(answer: str, references: Iterable[str]) -> float:
    """Give the harmonic mean of precision and recall of the words.

    As LongBench has it, only the punctuation of ASCII, and in Chinese, Japanese and Korean their own, is dropped
    (`normalise` drops that of any script), and nothing in common scores 0 even where both are empty.
    """
    said = _longbench_normalised(answer).split()
    return max((_word_f1(said, _longbench_normalised(reference).split()) for reference in references), default=0.0)


def rouge_l(answer: str, references: Iterable[str]) -> float:
    """Give the F of ROUGE-L by the package `rouge`, as LongBench does; an answer without words scores 0.

    LongBench counts 0 wherever the package raises, which it also does on about 1,000 words without a full stop, as it
    recurses once per word; here such answers are scored.

    Raises:
        ModelError: The package is not installed.
    """
    try:
        from rouge import Rouge  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise _missing("rouge", "summaries") from error
    measure = Rouge(metrics=["rouge-l"])

    def single(reference: str) -> float:
        try:
            with _deep(len(answer.split()) + len(reference.split())):
                return float(measure.get_scores([answer], [reference], avg=True)["rouge-l"]["f"])
        except ValueError:  # nothing but full stops on either side
            return 0.0

    return max(map(single, references), default=0.0)


def classification(answer: str, references: Iterable[str], classes: Sequence[str]) -> float:
    """Give 1 / n where the right label is among the n labels that the answer names, and else 0.

    Labels that are part of the right one ("Food" in "Food and drink") do not count as named.

    Args:
        answer: What was said.
        references: The right label.
        classes: All labels.
    """
    named = [label for label in classes if label in answer]

    def single(reference: str) -> float:
        left = [label for label in named if label == reference or label not in reference]
        return 1.0 / len(left) if reference in left else 0.0

    return max(map(single, references), default=0.0)


def retrieval(answer: str, references: Iterable[str]) -> float:
    """Give the share of the numbers in the answer that are the right paragraph's.

    Args:
        answer: What was said.
        references: "Paragraph 12"; one without such a number scores 0.
    """
    wanted = (found[1] for reference in references if (found := re.search(r"Paragraph (\d+)", reference)))
    return max((_share_of_numbers(answer, number) for number in wanted), default=0.0)


def count(answer: str, references: Iterable[str]) -> float:
    """Give the share of the numbers in the answer that are the right one, written as it is ("07" is not "7")."""
    return max((_share_of_numbers(answer, reference) for reference in references), default=0.0)


def code_similarity(answer: str, references: Iterable[str]) -> float:
    """Compare the first line that is code with the right line: characters in common, in order, in whole percents.

    LongBench took fuzzywuzzy's ratio. With python-Levenshtein beside it that is this one; without, it compares by
    Python's difflib, which never gives more.

    Raises:
        ModelError: The package rapidfuzz is not installed.
    """
    try:
        from rapidfuzz import fuzz
    except ImportError as error:
        raise _missing("rapidfuzz", "code") from error
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _NO_CODE)), "")
    return max((round(fuzz.ratio(line, reference)) / 100 for reference in references), default=0.0)


def string_match_all(answer: str, references: Iterable[str]) -> float:
    """Give the share of the references that stand in the answer, upper and lower case alike (RULER)."""
    found = [reference.lower() in answer.lower() for reference in references]
    return sum(found) / len(found) if found else 0.0


def string_match_part(answer: str, references: Iterable[str]) -> float:
    """Give 1 where any reference stands in the answer, upper and lower case alike (RULER's question answering)."""
    return float(any(reference.lower() in answer.lower() for reference in references))


_BY_REFERENCES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "retrieval": retrieval,
    "count": count,
    "code_similarity": code_similarity,
    "string_match_all": string_match_all,
    "string_match_part": string_match_part,
    "contains": contains,
    "exact_match": exact_match,
}


def _measure(metric: Metric, prediction: str, case: Case) -> float:
    if metric == "classification":
        return classification(prediction, case.references, case.classes)
    return float(_BY_REFERENCES[metric](prediction, case.references))


def _scored_part(task: Task, prediction: str) -> str:
    """Return what of an answer is scored: code as it is, since a line's indentation counts; anything else stripped.

    Of that, all or the first line.
    """
    if task.metric == "code_similarity":
        return prediction
    return prediction.lstrip("\n").split("\n")[0] if task.first_line else prediction.strip()


def _longbench_normalised(text: str) -> str:
    text = unicodedata.normalize("NFC", text.lower())
    return _words("".join(c for c in text if c not in string.punctuation and not _is_wide_punctuation(c)))


def _is_wide_punctuation(character: str) -> bool:
    """Whether it is one of Chinese, Japanese or Korean: all others are of the width of letters."""
    return unicodedata.category(character)[0] == "P" and unicodedata.east_asian_width(character) in "WF"


def _words(text: str) -> str:
    text = re.sub(r"\b(a|an|the)\b", " ", text)  # first: the A of 维生素A is no article
    return " ".join(_EAST_ASIAN.sub(r" \g<0> ", text).split())


def _word_f1(said: list[str], wanted: list[str]) -> float:
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _share_of_numbers(answer: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", answer)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


@contextmanager
def _deep(words: int) -> Iterator[None]:
    """Let Python recurse once per word."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + words)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _missing(package: str, what: str) -> ModelError:
    return ModelError(
        f'{what} are scored with the package {package}, which is not installed: pip install "infinipot-llm[eval]".'
    )
