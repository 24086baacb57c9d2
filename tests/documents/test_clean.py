from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.documents.clean import clean, one_line, printable

any_text = st.text(
    st.one_of(
        st.characters(),
        st.characters(max_codepoint=0xA0),
        st.sampled_from("\r\n\x1b[]m;0\x07\\\u00ad\u0301e\ufeff\u202e\u2029\ufb01\ufefb\u2f00\ud800\udc00"),
    )
)


@settings(deadline=None)
@given(any_text)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@settings(deadline=None)
@given(any_text)
def test_what_is_printed_cannot_steer_a_terminal(text: str) -> None:
    for result in (clean(text), printable(text)):
        result.encode("utf-8")
        for character in result:
            assert unicodedata.category(character) != "Cc" or character in "\n\t"
            assert not "\u202a" <= character <= "\u202e"
            assert not "\u2066" <= character <= "\u2069"
    assert printable(clean(text)) == clean(text)


@settings(deadline=None)
@given(any_text)
def test_clean_text_is_in_nfc(text: str) -> None:
    assert unicodedata.is_normalized("NFC", clean(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\u2028d\u0085e", "a\nb\nc\nd\ne"),
        ("e\u0301", "é"),
        ("\ufeffstart", "start"),
        ("a\x00b\x7fc\x9bd", "abcd"),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("moun\u00ad\n  tains and val\u00adleys", "mountains and valleys"),
        ("e\ufb03cient", "efficient"),
        ("\ufe8e\ufedf", "\u0627\u0644"),  # Arabic letters in their joined shapes
        ("\u2f00\u2f08", "\u4e00\u4eba"),  # CJK radicals
        ("می\u200cخواهم", "می\u200cخواهم"),  # the zero width non-joiner is spelling
        ("क्\u200dष", "क्\u200dष"),
        ("x² ½ ™ Ａ", "x² ½ ™ Ａ"),
        ("tab\tstays\n", "tab\tstays\n"),
        ("N\bNA\bAM\bME\bE _\bd_\bi_\br \u2022\bo", "NAME dir o"),  # printed over one another: bold, underlined
        ("first\x0bsecond\x1cthird", "first\nsecond\nthird"),  # a soft line break of word processors
        ("o" + "\u0300\u0316" * 16, "\u00f2" + "\u0316" * 15 + "\u0300" * 14),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;new title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link", "link"),
        ("\x1b\x1b[0m[31mnested", "[31mnested"),
        ("over\x08\x08\x08\x08ruled\rline", "overruled\nline"),
        ("abc\u202edef\u202c \u2066x\u2069", "abcdef x"),
        ("hidden\U000e0041\U000e0042", "hidden"),
        ("e\u0301", "e\u0301"),
        ("한글 漢字 العربية", "한글 漢字 العربية"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_one_line() -> None:
    assert one_line("bad\nname\x1b[2J\t.pdf ") == "bad name .pdf"


def test_many_marks_on_one_letter_are_cleaned_in_no_time() -> None:
    """Normalising sorts them, in the square of their number: a small file hung the process."""
    text = clean("a" + "\u0300" * 500_000 + "\u0316" * 500_000 + "b")
    assert len(text) < 40
    assert text[0] == "\u00e0"
    assert text[-1] == "b"
