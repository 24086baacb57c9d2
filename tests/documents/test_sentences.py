from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.documents import sentences as sentences_module
from infinipot_llm.documents.lines import units
from infinipot_llm.documents.sentences import MAX_CHARACTERS, Sentences, sentences

any_text = st.text(st.one_of(st.characters(), st.sampled_from("aB.!? \n\t。」1(-•\u0301\u00a0")), max_size=400)
long_text = st.lists(
    st.sampled_from(["word", "Dr.", "End.", ", ", "\n", "\n\n", " ", "。", "가나다", "1.", "x" * 90])
).map(lambda parts: "".join(parts) * 12)


def cut(text: str) -> list[str]:
    return [text[start:end].replace("\n", " ") for start, end in sentences(text, 0, len(text))]


@settings(deadline=None)
@given(st.one_of(any_text, long_text))
def test_sentences_hold_every_visible_character_once_and_in_order(text: str) -> None:
    found = sentences(text, 0, len(text))
    reached = 0
    for start, end in found:
        assert reached <= start < end
        assert not text[reached:start].strip()
        assert text[start:end] == text[start:end].strip()
        assert end - start <= MAX_CHARACTERS
        reached = end
    assert not text[reached:].strip()


@settings(deadline=None)
@given(st.one_of(any_text, long_text), st.data())
def test_the_sentence_at_an_offset_is_one_of_them(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    offset = data.draw(st.integers(start, end))
    found = sentences(text, start, end)
    if not found:
        with pytest.raises(ValueError, match="blank"):
            Sentences(text, start, end).at(offset)
        return
    expected = next(((s, e) for s, e in found if e > offset), found[-1])
    assert Sentences(text, start, end).at(offset) == expected


def test_wrapped_lines_end_nothing_and_blank_lines_do() -> None:
    text = (
        "The Alps are the highest mountain range\nthat lies entirely in Europe. They cross eight\ncountries\n\nNext one"
    )
    assert cut(text) == [
        "The Alps are the highest mountain range that lies entirely in Europe.",
        "They cross eight countries",
        "Next one",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Dr. Smith met J. R. Tolkien and Mr. St. John at 3.5 km.",
        "It costs e.g. 4,810.50 dollars, i.e. a lot, cf. Fig. 3 and pp. 4-5.",
        "The U.S. Congress met on Jan. 6 with Acme Inc. Chairman Lee.",
        "Smith et al. (2015) found www.example.com/a.b useful...and so on.",
        "Strategy 5.1.1. Exploration",
        "1. First item",
        '"Why?" he asked, and "Stop!" she cried.',
        "Preface . . . . . . . . . . 12",
        "Das gilt z.B. Seite 3 bzw. Nr. 4",
        "それは３．５倍です。",
        "「本当ですか？」と彼は言った。",
    ],
)
def test_one_sentence(text: str) -> None:
    assert cut(text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He lives in the U.S. The rest moved.", ["He lives in the U.S.", "The rest moved."]),
        ("It ended in 2015. Then came 3.5. But why?", ["It ended in 2015.", "Then came 3.5.", "But why?"]),
        ("Is it so? No. He left.", ["Is it so?", "No.", "He left."]),
        ("It is in Europe.[1][22] Next one.", ["It is in Europe.[1][22]", "Next one."]),
        ('He said "Go." She went!', ['He said "Go."', "She went!"]),
        ("(It rained.) It stopped.", ["(It rained.)", "It stopped."]),
        ("山がある。川もある！本当？はい", ["山がある。", "川もある！", "本当？", "はい"]),
        ("他说：「走吧。」我走了。", ["他说：「走吧。」", "我走了。"]),
        ("알프스는 산맥이다. 높이는 4.8km이다. 그래요?", ["알프스는 산맥이다.", "높이는 4.8km이다.", "그래요?"]),
        ("했다.그리고 갔다.", ["했다.", "그리고 갔다."]),
        ("ما هذا؟ هذا جبل. نعم", ["ما هذا؟", "هذا جبل.", "نعم"]),
        ("یہ پہاڑ ہے۔ وہ دریا ہے۔", ["یہ پہاڑ ہے۔", "وہ دریا ہے۔"]),
        ("यह पहाड़ है। वह नदी है।", ["यह पहाड़ है।", "वह नदी है।"]),
        ("Это и т.д. и т.п. Вот г. Москва.", ["Это и т.д. и т.п. Вот г. Москва."]),
    ],
)
def test_sentence_ends(text: str, expected: list[str]) -> None:
    assert cut(text) == expected


def test_lists_headings_and_tables_are_units_of_their_own() -> None:
    text = (
        "12\n"
        "2.1 Vectors and assignment\n"
        "R operates on named data structures, the simplest of which is the numeric\n"
        "vector, a single entity consisting of an ordered collection of numbers:\n"
        "• the first item, which is long enough to be wrapped to another line of the\n"
        "page\n"
        "• the second item\n"
        "(a) a lettered one\n"
        "3) a numbered one\n"
        "1.7 Getting help ................. 4\n"
        "| name | value |\n"
        "| a | 1 |\n"
        "Rock age Tertiary\n"
        "Rock type Schist\n"
    )
    assert cut(text) == [
        "12",
        "2.1 Vectors and assignment",
        "R operates on named data structures, the simplest of which is the numeric vector, a single entity "
        "consisting of an ordered collection of numbers:",
        "• the first item, which is long enough to be wrapped to another line of the page",
        "• the second item",
        "(a) a lettered one",
        "3) a numbered one",
        "1.7 Getting help ................. 4",
        "| name | value |",
        "| a | 1 |",
        "Rock age Tertiary",
        "Rock type Schist",
    ]


def test_a_running_head_is_not_part_of_the_sentence_below_it() -> None:
    text = "Chapter 1: Introduction 7\nbe quite hard to decide what they might be when the several analyses ended."
    assert cut(text)[0] == "Chapter 1: Introduction 7"


def test_a_number_wrapped_to_the_start_of_a_line_opens_no_item() -> None:
    text = (
        "The mountain is much higher than all the others, reaching\n3.5 kilometres according to the book of\nA. Smith"
    )
    assert cut(text) == [text.replace("\n", " ")]


def test_lines_of_unwrapped_text_are_paragraphs() -> None:
    text = "w " * 120 + "end without a stop\nnext paragraph without one"
    assert len(cut(text)) == 2


def test_long_sentences_are_cut_at_clauses_or_words() -> None:
    clauses = "one more clause of a long contract, " * 40
    pieces = cut(clauses)
    assert all(piece.endswith("contract,") and len(piece) > MAX_CHARACTERS / 2 for piece in pieces[:-1])
    words = cut("word " * 300)
    assert all(set(piece.split()) == {"word"} for piece in words)
    assert [len(piece) for piece in cut("x" * 1300)] == [600, 600, 100]


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 1), (0, 9)])
def test_ranges_outside_of_the_text_are_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not a range of the text"):
        sentences("text", start, end)


def test_an_offset_outside_of_its_page_is_refused() -> None:
    with pytest.raises(ValueError, match="outside of"):
        Sentences("One. Two.", 0, 4).at(8)
    assert Sentences("One. Two.", 0, 9).at(4) == (5, 9)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("filler", ["." * 50000, "\n" * 50000, " ." * 25000, "1. " * 20000, "((" * 25000, "\t" * 50000])
def test_hostile_repetition_takes_no_long_time(filler: str) -> None:
    text = "Start " + filler + " end of it"
    assert text[: sentences(text, 0, len(text))[0][1]].startswith("Start")


def test_a_block_is_cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text without blank lines is one block: cut anew for every sentence, a question took seconds."""
    cuts: list[tuple[int, int]] = []

    def counted(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        cuts.append((start, end))
        return units(text, start, end)

    monkeypatch.setattr(sentences_module, "units", counted)
    text = "One. Two.\nThree.\n\nFour. Five."
    found = Sentences(text, 0, len(text))
    assert {text[slice(*found.at(i))] for i in range(len(text) + 1)} == {"One.", "Two.", "Three.", "Four.", "Five."}
    assert cuts == [(0, 16), (18, 29)]
