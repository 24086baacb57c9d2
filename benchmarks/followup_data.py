"""Documents with known answers for questions that are asked after reading, and what answers are scored by.

`load(data)` joins paragraphs of three sets to documents of about 4,000 to 130,000 tokens, always the same ones:

    cal     4 articles of XQuAD, 45 passages of Natural Questions, 5 pairs of HotpotQA; for calibration alone
    A4, B4  about 4,000 tokens each: 2 articles, 12 passages, 4 pairs
    m16     A4 and B4 and others, about 16,000 tokens
    m30     m16 and others, about 30,000 tokens
    x8      10 articles of XQuAD, about 8,000 tokens (all of them in m30, 6 of them in m16)
    n8      75 passages of Natural Questions, about 8,000 tokens (in no other document but n130)
    n130    n8 and all the passages that are in no other document, about 130,000 tokens
    h30     45 pairs of HotpotQA and 4 passages each that mislead, about 30,000 tokens (14 of the pairs are in m30)

Paragraphs of an XQuAD article stay together; passages and the two paragraphs of a pair are spread over the document.
Every question knows where its evidence lies. The HotpotQA pairs of `cal` (groups h0 to h4) are in no other document.

`data` is the folder that holds `qa/` (XQuAD: CC BY-SA 4.0; Natural Questions: CC BY-SA 3.0; HotpotQA: CC BY-SA 4.0;
SQuALITY: CC BY 4.0).
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from infinipot_llm import Document
from infinipot_llm.evaluation.metrics import normalise

Range: TypeAlias = tuple[int, int]
Kind: TypeAlias = Literal["xquad", "nq", "hotpot", "squality"]

NAMES = ("cal", "A4", "B4", "m16", "m30", "x8", "n8", "h30", "n130")
NESTED = ((("A4", "B4"), ("m16", "m30")), (("n8",), ("n130",)))
"""Documents, and longer ones that hold them whole."""
BETWEEN = "\n\n"
"""Between two paragraphs of a document."""


@dataclass(frozen=True)
class Question:
    """A question, its reference answers, and where its evidence lies.

    Attributes:
        kind: The set that it comes from.
        group: The source article or passage; questions of one group are not independent of each other.
        question: The question.
        answers: Reference answers: any of them is right.
        gold: Character ranges of the evidence in the sample's text: the answer itself (xquad), a short answer where it
            first occurs in the gold passage (nq), every supporting sentence (hotpot), nothing (squality, `absent`).
    """

    kind: Kind
    group: str
    question: str
    answers: tuple[str, ...]
    gold: tuple[Range, ...]

    def is_covered(self, ranges: Iterable[Range]) -> bool:
        """Whether the evidence is among these characters: whole answers, or half of every supporting sentence."""
        return covered(ranges, self.gold, 0.5 if self.kind == "hotpot" else 1.0)


@dataclass(frozen=True)
class Sample:
    """A document and the questions on it."""

    name: str
    text: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class _Paragraph:
    """A paragraph, and the questions on it; their gold counts from the paragraph's first character."""

    text: str
    questions: tuple[Question, ...] = ()


_Block: TypeAlias = tuple[_Paragraph, ...]  # paragraphs that stay together


def load(data: Path) -> dict[str, Sample]:
    """Build the documents of this module's first lines: the same texts and questions on every machine.

    Args:
        data: The folder that holds `qa/`.
    """
    articles = json.loads((data / "qa" / "xquad.en.dev.json").read_text(encoding="utf-8"))["data"]
    pairs = json.loads((data / "qa" / "hotpotqa.dev50.json").read_text(encoding="utf-8"))
    with gzip.open(data / "qa" / "nq.dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        passages = [json.loads(line) for line in lines]

    order = list(range(len(passages)))
    random.Random(7).shuffle(order)
    usable = iter([block for number in order if (block := _passage(passages[number], number))[0].questions])

    def article(*numbers: int) -> list[_Block]:
        return [_article(articles[number], number) for number in numbers]

    def some(count: int) -> list[_Block]:
        return [next(usable) for _ in range(count)]

    def pair(*numbers: int) -> list[_Block]:
        return [block for number in numbers for block in _pair(pairs[number], number)]

    def distractors(*numbers: int) -> list[_Block]:
        return [block for number in numbers for block in _distractors(pairs[number])[:4]]

    # `some` takes passages that no document before has taken: the order of these lines matters.
    cal = article(*range(4)) + some(45) + pair(*range(5))
    first = article(4, 5) + some(12) + pair(*range(5, 9))
    second = article(6, 7) + some(12) + pair(*range(9, 13))
    to_16k = article(*range(8, 14)) + some(20) + distractors(*range(5, 9))
    to_30k = article(*range(14, 22)) + some(20) + distractors(*range(9, 13)) + pair(*range(13, 19))
    eighth = some(75)
    blocks = {
        "cal": cal,
        "A4": first,
        "B4": second,
        "m16": first + second + to_16k,
        "m30": first + second + to_16k + to_30k,
        "x8": article(*range(8, 18)),
        "n8": eighth,
        "h30": pair(*range(5, 50)) + distractors(*range(5, 50)),
        "n130": _once([*usable, *eighth]),
    }
    return {name: _joined(name, blocks[name], seed) for seed, name in enumerate(NAMES, start=1)}


def squality(data: Path) -> list[Sample]:
    """Load the stories of SQuALITY, 4,000 to 10,000 tokens each: five questions on the whole story, no evidence ranges.

    Args:
        data: The folder that holds `qa/`.
    """
    samples = []
    lines = (data / "qa" / "squality.dev.jsonl").read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(filter(None, lines)):
        story = json.loads(line)
        questions = tuple(
            Question(
                "squality",
                f"s{number}",
                asked["question_text"],
                tuple(response["response_text"] for response in asked["responses"]),
                (),
            )
            for asked in story["questions"]
        )
        samples.append(Sample(f"squality-{number:02}", story["document"], questions))
    return samples


def short(data: Path, paragraphs: int) -> list[Sample]:
    """Give the first paragraphs of each article of XQuAD that `cal` has not, as a document of its own.

    Args:
        data: The folder that holds `qa/`.
        paragraphs: Of each; about 190 tokens each, five at most.
    """
    articles = json.loads((data / "qa" / "xquad.en.dev.json").read_text(encoding="utf-8"))["data"]
    return [
        _joined(f"article-{number}-{paragraphs}", [_article(articles[number], number)[:paragraphs]], 0)
        for number in range(4, 22)
    ]


def drawn(samples: dict[str, Sample], name: str, limit: int) -> list[tuple[int, Question]]:
    """Draw questions of a sample, the same ones whenever: (number among its questions, question).

    A4, B4, m16 and m30 are asked the same questions, and so are n8 and n130, so that lengths can be compared: `limit`
    is of A4 and B4 together.
    """
    nested = next((shorter for shorter, longer in NESTED if name in (*shorter, *longer)), (name,))
    pool = [q.question for s in nested for q in samples[s].questions]
    chosen = [q for q in samples[name].questions if q.question in set(pool)]
    kept = set(sorted(pool, key=lambda text: (zlib.crc32(text.encode()), text))[:limit])
    return [(number, question) for number, question in enumerate(chosen) if question.question in kept]


def absent(sample: Sample, others: Iterable[Sample]) -> list[Question]:
    """Give questions of other documents that this one does not answer: no paragraph of their evidence is in it.

    Their `gold` is empty, as it would point into another text; their answers stay. What is known is that the evidence
    is elsewhere: another passage may still happen to answer a question of Natural Questions, and a short answer such
    as "two" may occur.

    Args:
        sample: The document that is read.
        others: Where the questions are taken from; may hold the document itself and documents that share text with it.
    """
    groups = {question.group for question in sample.questions}
    found: dict[tuple[str, str], Question] = {}
    for other in others:
        for question in other.questions:
            evidence = [_paragraph_at(other.text, start, end) for start, end in question.gold]
            if question.group not in groups and not any(paragraph in sample.text for paragraph in evidence):
                found.setdefault((question.group, question.question), replace(question, gold=()))
    return list(found.values())


def f1(answer: str, references: Iterable[str]) -> float:
    """Give the harmonic mean of precision and recall of the normalised words, for the reference that fits best."""
    return max(_word_f1(normalise(answer).split(), normalise(reference).split()) for reference in references)


def covered(ranges: Iterable[Range], gold: Sequence[Range], at_least: float = 1.0) -> bool:
    """Whether character ranges, taken together, hold every gold range.

    Args:
        ranges: Character ranges [start, end), in any order; they may overlap.
        gold: What is wanted.
        at_least: The share of the characters of each gold range that must be there (`Question.is_covered` wants 1.0,
            and 0.5 of HotpotQA's supporting sentences).

    Raises:
        ValueError: If there is no gold: such a question has no evidence to find.
    """
    if not gold:
        raise ValueError("no gold ranges: evidence cannot be found for a question that has none")
    union = merged(ranges)
    return all(
        sum(max(0, min(end, b) - max(start, a)) for a, b in union) >= at_least * (end - start) for start, end in gold
    )


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Give the union of ranges as ranges in order, disjoint and not touching."""
    union: list[Range] = []
    for start, end in sorted(r for r in ranges if r[0] < r[1]):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(union[-1][1], end)
        else:
            union.append((start, end))
    return union


def _article(article: dict[str, Any], number: int) -> _Block:
    """Give the paragraphs of an article of XQuAD."""
    return tuple(
        _Paragraph(
            paragraph["context"],
            tuple(
                Question(
                    "xquad",
                    f"x{number}",
                    asked["question"],
                    tuple(sorted({answer["text"] for answer in asked["answers"]})),
                    ((start := asked["answers"][0]["answer_start"], start + len(asked["answers"][0]["text"])),),
                )
                for asked in paragraph["qas"]
            ),
        )
        for paragraph in article["paragraphs"]
    )


def _passage(row: dict[str, Any], number: int) -> _Block:
    """Give a passage of Natural Questions; without its question when the passage holds no short answer literally."""
    text = " ".join(row["passage"].split())
    for answer in (" ".join(answer.split()) for answer in row["answers"]):
        if (start := text.lower().find(answer.lower())) >= 0:
            gold = ((start, start + len(answer)),)
            question = Question("nq", f"n{number}", row["question"], tuple(row["answers"]), gold)
            return (_Paragraph(text, (question,)),)
    return (_Paragraph(text),)


def _once(blocks: Iterable[_Block]) -> list[_Block]:
    """Leave out passages that come twice, and those with characters that loading takes away, which move the gold."""
    by_text = {block[0].text: block for block in blocks}
    return [block for text, block in by_text.items() if Document.from_text(text).text == text]


def _pair(row: dict[str, Any], number: int) -> tuple[_Block, _Block]:
    """Give the two gold paragraphs of HotpotQA, each with the question and its own supporting sentences."""

    def paragraph(sentences: list[str], supporting: list[int]) -> _Block:
        text, offsets = "", []
        for sentence in sentences:
            piece = sentence if text else sentence.lstrip()
            offsets.append((len(text) + len(piece) - len(piece.lstrip()), len(text) + len(piece)))
            text += piece
        gold = tuple(offsets[i] for i in supporting if i < len(offsets))
        return (_Paragraph(text, (Question("hotpot", f"h{number}", row["question"], (row["answer"],), gold),)),)

    first, second = row["supporting_facts"]
    return paragraph(row["para_a"], first), paragraph(row["para_b"], second)


def _distractors(row: dict[str, Any]) -> list[_Block]:
    """Give the paragraphs of HotpotQA that look like evidence and are none."""
    return [(_Paragraph("".join(sentences).strip()),) for _, sentences, *_ in row["distractors"]]


def _joined(name: str, blocks: Sequence[_Block], seed: int) -> Sample:
    """Shuffle the blocks and join them; the questions of a pair become one, with the evidence of both paragraphs."""
    shuffled = list(blocks)
    random.Random(seed).shuffle(shuffled)
    paragraphs = [paragraph for block in shuffled for paragraph in block]
    questions: list[Question] = []
    pairs: dict[str, int] = {}
    at = 0
    for paragraph in paragraphs:
        for question in paragraph.questions:
            gold = tuple((start + at, end + at) for start, end in question.gold)
            if question.kind == "hotpot" and question.question in pairs:
                number = pairs[question.question]
                questions[number] = replace(questions[number], gold=questions[number].gold + gold)
                continue
            if question.kind == "hotpot":
                pairs[question.question] = len(questions)
            questions.append(replace(question, gold=gold))
        at += len(paragraph.text) + len(BETWEEN)
    return Sample(name, BETWEEN.join(paragraph.text for paragraph in paragraphs), tuple(questions))


def _paragraph_at(text: str, start: int, end: int) -> str:
    """Give the whole paragraph that holds the characters [start, end)."""
    after = text.find(BETWEEN, end)
    before = text.rfind(BETWEEN, 0, start)
    return text[0 if before < 0 else before + len(BETWEEN) : len(text) if after < 0 else after]


def _word_f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))
