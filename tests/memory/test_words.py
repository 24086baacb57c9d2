"""Words: BM25 over spans, in any script; a question that shares no word says nothing."""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import pytest
from conftest import byte_tokenizer

from infinipot_llm.documents import Document, Page
from infinipot_llm.memory.spans import Spans, cut
from infinipot_llm.memory.words import MOST_WORDS, Words, _words
from infinipot_llm.models.text import TextCodec, TokenizedText

CODEC = TextCodec(byte_tokenizer())
LINES = ["The mill burned in 1903.", "The owner, Ada Krol, moved.", "It cost 68,211 crowns.", "... --- ...", "A mill."]


def words_of(*lines: str) -> Words:
    """An index in which every line is one span."""
    text, ends = "".join(lines), np.cumsum([len(line.encode()) for line in lines])
    document = Document("d", text, (Page(1, None, 0, len(text)),))
    starts = np.asarray([0, *ends], np.int64)
    return Words(CODEC.document([document]), Spans(starts, np.arange(len(lines))))


def test_spans_that_share_words_score_and_others_do_not() -> None:
    words = words_of(*LINES)
    assert np.flatnonzero(words.scores("Who is Ada Krol?")).tolist() == [1]
    assert np.flatnonzero(words.scores("68,211")).tolist() == [2]
    assert np.flatnonzero(words.scores("the MILL")).tolist() == [0, 4]
    assert words.scores("x").dtype == np.float32


def test_scores_are_those_of_bm25() -> None:
    """Lucene's form, k1 = 0.9, b = 0.4, by hand."""
    words = words_of(*LINES)
    lengths = [max(1, len(_words(line))) for line in LINES]  # a span without a word counts as one of its own
    mean = sum(lengths) / len(lengths)

    def score(span: int, counts: dict[str, int]) -> float:
        total = 0.0
        for word, documents in counts.items():
            count = _words(LINES[span]).count(word)
            idf = math.log(1 + (len(LINES) - documents + 0.5) / (documents + 0.5))
            total += idf * count / (count + 0.9 * (0.6 + 0.4 * lengths[span] / mean))
        return total

    expected = [score(span, {"mill": 2, "1903": 1}) for span in range(len(LINES))]
    assert words.scores("the mill in 1903 by a stranger").tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[0] > expected[4] > 0


@pytest.mark.parametrize("question", ["", "?", "What is it?", "zebra", "\x00", "the of and", "_ __"])
def test_a_question_without_a_known_word(question: str) -> None:
    assert words_of(*LINES).scores(question).tolist() == [0.0] * len(LINES)


def test_a_text_without_any_word() -> None:
    words = words_of("...", "\n\n\n", "the")
    assert words.scores("What ... the?").tolist() == [0.0] * 3
    assert words_of("!").scores("!").tolist() == [0.0]


def test_letters_of_scripts_without_blanks_are_paired() -> None:
    assert _words("日本の首都") == ["日本", "本の", "の首", "首都"]
    assert _words("東京 は") == ["東京", "は"]
    words = words_of("日本の首都は東京です。", "大阪は大きい都市です。", "한국어 문서입니다.")
    assert int(words.scores("首都はどこですか").argmax()) == 0
    assert int(words.scores("大阪について").argmax()) == 1
    assert int(words.scores("문서").argmax()) == 2


def test_marks_belong_to_their_letters() -> None:
    """Names that differ in a vowel sign alone are two names."""
    assert _words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    words = words_of("रीमा का जन्म 1903 में हुआ।", "रोमा का जन्म 1950 में हुआ।")
    assert int(words.scores("रोमा का जन्म कब हुआ?").argmax()) == 1
    assert words.scores("रीमा")[1] == 0
    assert _words("தமிழ் மொழி") == ["தமிழ்", "மொழி"]
    assert _words("می\u200cروم") == _words("میروم"), "joiners that not everybody types"


def test_thai_is_written_without_blanks() -> None:
    words = words_of("เมืองหลวงของไทยคือกรุงเทพ", "แม่น้ำสายนี้ยาวมาก")
    assert words.scores("กรุงเทพ").argmax() == 0
    assert words.scores("แม่น้ำ").argmax() == 1


def test_letters_in_other_widths_and_cases_are_the_same() -> None:
    assert _words("２０２１ ＡＢＣ") == ["2021", "abc"]
    assert _words("İstanbul ISTANBUL") == ["istanbul", "istanbul"]


@pytest.mark.parametrize(
    ("word", "there", "same"),
    [("burn", "burned", True), ("5001", "50012", False), ("kx2000", "kx2000b", False), ("mil", "mill", False)],
)
def test_another_ending_is_one_of_letters(word: str, there: str, same: bool) -> None:
    assert (words_of("one", "two").share(word, there) == 1.0) is same


def test_case_and_common_words() -> None:
    assert _words("The STRASSE and the straße, of_it") == ["strasse", "strasse"]
    assert _words("Élan 3.14 x_y") == ["élan", "3", "14", "x", "y"]


def test_headers_of_documents_are_no_words_of_the_text() -> None:
    """Their tokens stand for no characters."""
    text = CODEC.document([Document.from_text("x" * 40, name="mill"), Document.from_text("The mill. " * 4, name="b")])
    words = Words(text, cut(text))
    first = cut(text).starts < text.first[1]
    assert not words.scores("mill")[first[:-1]].any()
    assert words.scores("mill").any()


def test_one_score_for_every_span() -> None:
    text: TokenizedText = CODEC.document([Document.from_text("\n\n".join(LINES * 7))])
    spans = cut(text)
    assert len(Words(text, spans).scores("mill")) == len(Words(text, spans).scores("zebra")) == len(spans)


def test_a_question_is_normalised_as_documents_are() -> None:
    text = CODEC.document([Document.from_text("Herr Müller fand die Quelle.\n\nEin Fisch schwamm.\n\nNichts.")])
    words = Words(text, cut(text))
    plain = words.scores("Müller")
    assert plain.max() > 0
    assert words.scores(unicodedata.normalize("NFD", "Müller")).tolist() == plain.tolist()
    assert words.scores("\ud83d Müller").tolist() == plain.tolist()


def test_the_share_of_a_questions_words_counts_rare_ones_more() -> None:
    words = words_of(*LINES)

    def rarity(documents: int) -> float:
        return math.log(1 + (len(LINES) - documents + 0.5) / (documents + 0.5))

    mill, burned, unknown = rarity(2), rarity(1), rarity(0)
    question = "When was the MILL burned, Zork?"
    assert words.share(question, LINES[4]) == pytest.approx(mill / (mill + burned + unknown))
    assert words.share(question, LINES[0]) == pytest.approx((mill + burned) / (mill + burned + unknown))
    assert words.share(question, LINES[1]) == 0.0
    assert words.share("the burned mill", LINES[0]) == 1.0
    assert words.share("Did mills burn?", LINES[0]) == 1.0, "with other endings"
    assert words.share("Krol own?", "owner") == 0.0, "too short to be told from another word"


def test_common_words_and_long_instructions_share_nothing_that_could_be_told() -> None:
    words = words_of(*LINES)
    assert words.share("What is it?", LINES[0]) is None
    assert words.share("", LINES[0]) is None
    many = " ".join(f"word{n}" for n in range(MOST_WORDS))
    assert words.share(many, LINES[0]) == 0.0
    assert words.share(f"{many} mill", LINES[0]) is None
