"""Text made safe and uniform: `clean` for what a document says, `printable` for what a terminal shows."""

from __future__ import annotations

import re
import unicodedata

import regex

_LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\u0085\u2028\u2029]")

# Formatted manual pages print a letter over itself for bold, and over an underscore for underlined.
_OVERSTRUCK = re.compile("[^\n\x08]\x08")

_SURROGATE = re.compile("[\ud800-\udfff]")

# Colour and cursor codes (CSI) and window titles or links (OSC): with the escape character alone removed, their
# parameters would stay behind as text.
_ESCAPE_SEQUENCE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b\n]*(?:\x07|\x1b\\\\))")

# Controls other than tab and newline; bidi embeddings, overrides and isolates, which can show a text in another order
# than it has; the byte order mark; interlinear annotation marks; and tag characters, which hide text from the reader.
# Joiners (U+200C, U+200D) stay: Arabic and Indic scripts are misspelt without them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)

# A soft hyphen marks where a word may be broken; where a line break follows, the word was broken there.
_SOFT_HYPHEN = re.compile("\u00ad+(?:[ \t]*\n[ \t]*(?=\\w))?")

# Characters that stand for a glyph, as PDFs yield them: Latin ligatures, Arabic letters in their joined shapes and CJK
# radicals. Nobody types them into a question, and a tokenizer breaks them into bytes.
_GLYPH_FORMS = re.compile("[\u2e80-\u2fdf\ufb00-\ufb06\ufb50-\ufdff\ufe70-\ufefc]+")

# More marks on one letter than any script has; normalising takes the square of their number. Unicode's own limit for
# text that is normalised as it comes (UAX 15, stream-safe).
_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")

# Some messages quote the bytes that were not understood, at any length.
_REASON_CHARACTERS = 80


def clean(text: str) -> str:
    r"""Normalise the text of a document; doing so twice changes nothing more.

    The result is in Unicode NFC with "\n" as its only line end and without control characters (tab and newline stay),
    escape sequences, bidi controls, byte order marks and soft hyphens. Glyph forms (ligatures, Arabic presentation
    forms, CJK radicals) become the letters they stand for. Of letters printed over one another the last stays, and of
    combining marks on one letter thirty. Lone surrogates become U+FFFD.

    Args:
        text: Any string, lone surrogates included.
    """
    text = _SOFT_HYPHEN.sub("", printable(_OVERSTRUCK.sub("", text)))
    text = _MARKS.sub(r"\1", text)
    text = _GLYPH_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match.group()), text)
    return unicodedata.normalize("NFC", text)


def printable(text: str) -> str:
    """Make untrusted text safe to print on a terminal, changing nothing that is visible.

    The result holds no control characters besides tab and newline, no escape sequences, no bidi controls and no lone
    surrogates, so that it cannot move the cursor, hide or reorder what is printed, or fail to encode.

    Args:
        text: Any string, lone surrogates included.
    """
    text = _LINE_END.sub("\n", _ESCAPE_SEQUENCE.sub("", text))
    return whole_characters(_INVISIBLE.sub("", text))


def whole_characters(text: str) -> str:
    """Put U+FFFD in the place of every lone surrogate, which nothing encodes; the text keeps its length."""
    return _SURROGATE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Make a name or a message of another library fit for a place in a sentence: printable, in one line."""
    return " ".join(printable(text).split())


def describe(error: BaseException) -> str:
    """Name an exception of another library in a few words, on one line: "PdfReadError: EOF marker not found"."""
    message = one_line(str(error)).rstrip(".")[:_REASON_CHARACTERS].rstrip()
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
