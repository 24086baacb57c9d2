from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.documents import Document, Page, Span, Turn
from infinipot_llm.documents.clean import clean
from infinipot_llm.errors import DocumentError

MEETING = """WEBVTT - planning
Kind: captions

STYLE
::cue { color: red }

NOTE nobody says this

1
00:00:01.500 --> 00:00:04.000 align:start
<v.loud Anna Berg>Good <i>morning</i>, everyone &amp; welcome.</v>

00:00:04.000 --> 00:00:06.000
<v Anna Berg>Shall we
start?

00:00:07.250 --> 00:00:09.000
<v Ben>Yes<00:00:08.000><c.yellow>, we</c> shall.</v>
<v Anna Berg>Good.</v>

01:02:03.000 --> 01:02:05.000
Nobody knows &lt;who&gt; said 3 < 4.
"""


def read(text: str, name: str = "talk.vtt") -> Document:
    return Document.from_bytes(text.encode(), name=name)


def said(document: Document) -> list[tuple[float | None, str | None, str]]:
    return [(turn.time, turn.speaker, document.text[turn.start : turn.end]) for turn in document.turns]


def cues(*texts: str, each: float = 2.0) -> str:
    """A WebVTT file with a cue of `each` seconds for every text."""

    def stamp(seconds: float) -> str:
        return f"{int(seconds // 3600):02}:{int(seconds // 60) % 60:02}:{seconds % 60:06.3f}"

    return "WEBVTT\n\n" + "\n\n".join(
        f"{stamp(i * each)} --> {stamp((i + 1) * each)}\n{t}" for i, t in enumerate(texts)
    )


def test_voices_become_turns_with_times() -> None:
    document = read(MEETING)
    assert document.text == (
        "Anna Berg: Good morning, everyone & welcome. Shall we start?\n\n"
        "Ben: Yes, we shall.\n\nAnna Berg: Good.\n\nNobody knows <who> said 3 < 4."
    )
    assert [(time, speaker) for time, speaker, _ in said(document)] == [
        (1.5, "Anna Berg"),
        (7.25, "Ben"),
        (7.25, "Anna Berg"),
        (3723.0, None),
    ]
    assert document.notes == ()
    assert document.pages == (Page(1, None, 0, len(document.text)),)


def test_a_span_has_the_speaker_and_time_of_its_first_visible_character() -> None:
    document = read(MEETING)
    start = document.text.index("we shall")
    assert document.span(start, start + 8) == Span("talk.vtt", start, start + 8, 1, None, "we shall", "Ben", 7.25)
    before = document.text.index("\n\nBen")
    assert document.turn_at(before) is None
    assert document.span(before, start).speaker == "Ben"
    assert document.turn_at(0) == document.turns[0]
    assert document.turn_at(len(document.text)) is None
    with pytest.raises(ValueError, match="outside of the text"):
        document.turn_at(-1)


SRT = """1
00:00:01,000 --> 00:00:02,500
{\\an8}<font color="#fff">Wo warst du?</font>

2
00:00:03,000 --> 00:00:04,000
Zu Hause.\r

3
00:00:40,000 --> 00:00:41,000
Später.
"""


def test_subrip_without_speakers_becomes_paragraphs() -> None:
    document = read(SRT, "film.srt")
    assert said(document) == [(1.0, None, "Wo warst du? Zu Hause."), (40.0, None, "Später.")]


@pytest.mark.parametrize("name", ["-", "film.txt", "film.vtt", "film.SRT"])
def test_content_decides_what_captions_are(name: str, tmp_path: Path) -> None:
    assert read("\ufeff\n" + SRT, name).text == "Wo warst du? Zu Hause.\n\nSpäter."
    assert read("\ufeff" + MEETING, name).turns[1].speaker == "Ben"
    path = tmp_path / (name + ".x" if name == "-" else name)
    path.write_bytes(SRT.encode("utf-16"))
    assert Document.from_file(path).turns[0] == Turn(0, 22, None, 1.0)


def test_a_text_about_captions_is_text() -> None:
    for text in (
        "WEBVTT is a format for captions.",
        "How to write SRT:\n\n" + SRT,
        "WEBVTTX\n\n00:01.000 --> 00:02.000\nx",
    ):
        document = read(text, "-")
        assert document.text == clean(text)
        assert document.turns == ()


def test_rolling_captions_are_said_once() -> None:
    document = read(
        "WEBVTT\nKind: captions\n\n"
        "00:00:00.000 --> 00:00:02.000\n \nso<00:00:00.500><c> welcome</c>\n\n"
        "00:00:02.000 --> 00:00:02.010\nso welcome\n \n\n"
        "00:00:02.010 --> 00:00:04.000\nso welcome\nto<00:00:03.000><c> the show</c>\n\n"
        "00:00:04.000 --> 00:00:04.010\nto the show\n \n\n"
        "00:00:04.010 --> 00:00:06.000\nto the show\nthe show of shows\n\n"
    )
    assert document.text == "so welcome to the show the show of shows"


def test_growing_captions_are_said_once() -> None:
    assert read(cues("I", "I think", "I think so", "I think so too.")).text == "I think so too."


def test_what_was_said_twice_stays() -> None:
    assert read(cues("No.", "No.", "Why not?", "Because.", "I see.", "Do you?")).text.startswith("No. No. Why not?")


def test_a_cue_that_is_there_twice_is_read_once() -> None:
    text = "WEBVTT\n\n" + "00:01.000 --> 00:02.000\nOnce.\n\n" * 2 + "00:02.000 --> 00:03.000\nTwice."
    assert read(text).text == "Once. Twice."


def test_names_before_colons_are_speakers_if_they_come_back() -> None:
    document = read(
        cues("Anna Berg: Hello there.", "And welcome.", "Ben: Hi!", "Anna Berg: Let us", "start.", "Ben: Yes.")
    )
    assert said(document) == [
        (0.0, "Anna Berg", "Anna Berg: Hello there. And welcome."),
        (4.0, "Ben", "Ben: Hi!"),
        (6.0, "Anna Berg", "Anna Berg: Let us start."),
        (10.0, "Ben", "Ben: Yes."),
    ]
    alone = read(cues("Remember: never", "Warning: do not", "Note: this", "Note: that"))
    assert {turn.speaker for turn in alone.turns} == {None}


def test_arrows_mark_another_speaker() -> None:
    assert read(cues("&gt;&gt; Hello.", "How are you?", ">> Fine.")).text == "Hello. How are you?\n\nFine."


def test_long_text_is_divided_so_that_times_stay_useful() -> None:
    plain = read(cues(*[f"Sentence {i} is here." for i in range(60)], each=5.0))
    assert [turn.time for turn in plain.turns] == [0.0, 60.0, 120.0, 180.0, 240.0]
    unpunctuated = read(cues(*[f"word {i}" for i in range(60)], each=5.0))
    assert [turn.time for turn in unpunctuated.turns] == [0.0, 90.0, 180.0, 270.0]
    lecture = read(cues(*[f"<v Anna>Sentence {i} is here." for i in range(60)], each=5.0))
    assert [(turn.time, turn.speaker) for turn in lecture.turns] == [(0.0, "Anna"), (180.0, "Anna")]


@pytest.mark.parametrize(
    ("text", "name", "result", "notes"),
    [
        (
            "WEBVTT\n\n00:01.000 --> 00:02.000\nA.\n\n00:xx --> 00:04.000\nB.",
            "a.vtt",
            "A.",
            "1 of 2 captions could not be",
        ),
        ("WEBVTT\n\n00:00:01,000 --> 00:00:02,000\nComma.", "a.vtt", "Comma.", None),
        ("00:01.000 --> 00:02.000\nNo header.", "a.vtt", "No header.", None),
        ("00:00:01,000 --> 00:00:02,000\nNo number.", "a.srt", "No number.", None),
        ("WEBVTT\n00:01.000 --> 00:02.000\nA.\n00:02.000 --> 00:03.000\nB.", "a.vtt", "A. B.", None),
        ("WEBVTT\n\n00:03.000 --> 00:04.000\nB.\n\n00:01.000 --> 00:02.000\nA.", "a.vtt", "A. B.", "were put into it"),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\n<v >A</v> <b", "a.vtt", "A <b", None),
        ("1\n00:00:01,000 --> 00:00:02,000\nA\n\nB\\NC", "a.srt", "A B C", None),
        (
            "WEBVTT\n\n00:01.000 --> 00:02.000\nTwo parts:\n\n- buy\n- sell\n\nNOTE no\n\n"
            "1\n00:03.000 --> 00:04.000\nBye.",
            "a.vtt",
            "Two parts: - buy - sell Bye.",
            None,
        ),
        ("00:00:01,000 --> 00:00:02,000\nA\n\nB", "a.srt", "A B", None),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\nGo to Tools --> Options.", "a.vtt", "Go to Tools → Options.", None),
    ],
)
def test_careless_files_are_read_as_far_as_can_be(text: str, name: str, result: str, notes: str | None) -> None:
    document = read(text, name)
    assert document.text == result
    assert (notes or "") in " ".join(document.notes)
    assert bool(document.notes) == (notes is not None)


def test_the_encoding_is_noted_as_for_other_text() -> None:
    document = Document.from_bytes(SRT.encode("cp1252"), name="film.srt")
    assert document.text.endswith("Später.")
    assert "Windows-1252" in document.notes[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("WEBVTT\n\n", "holds no captions that can be read"),
        ("Just some prose.", "holds no captions that can be read"),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\n<c></c>", "holds no text: its captions are empty."),
        ("WEBVTT\n\nxx --> yy\nHello", "holds no captions that can be read"),
        (" \n ", "holds no captions that can be read"),
    ],
)
def test_a_file_without_captions_is_refused_in_a_sentence(text: str, told: str) -> None:
    with pytest.raises(DocumentError, match=r"^a\.vtt ") as raised:
        read(text, "a.vtt")
    assert told in str(raised.value)


def test_whatever_the_parser_raises_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import webvtt

    def fail(*args: object, **kwargs: object) -> None:
        raise RecursionError("deep\nwithin")

    monkeypatch.setattr(webvtt, "from_buffer", fail)
    with pytest.raises(DocumentError, match=r"^talk\.vtt holds captions that cannot be read: deep within\.$"):
        read(MEETING)


pieces = st.sampled_from(
    [
        *("WEBVTT", "1", "NOTE", "STYLE", "REGION", "-->", "\n", "\n", "\n\n", " ", "\r", "\x0c", "\u2028", "\ud800"),
        *("00:00:01.000 --> 00:00:02,000", "00:03.000 --> 00:02.500", "99999999999:99:99.999 --> x"),
        *("<v Anna>", "<v A\u0301\x1b[31m>", "</v>", "<c", "{\\an8}", "\\N", "&#0;", "&amp;", "\u0301", "\u00ad"),
        *(">> ", "Anna: ", "word"),
    ]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(pieces, max_size=30).map("".join), st.sampled_from([".vtt", ".srt", ""]), st.booleans())
def test_nothing_but_a_sentence_escapes(text: str, suffix: str, is_marked: bool) -> None:
    head = "WEBVTT\n\n00:00:00.100 --> 00:00:01.000\n" if is_marked else ""
    try:
        document = Document.from_bytes((head + text).encode("utf-8", "surrogatepass"), name=f"x{suffix}")
    except DocumentError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert refusal.startswith(f"x{suffix} ")
        return
    assert clean(document.text) == document.text
    for turn in document.turns:
        line = document.text[turn.start : turn.end]
        assert line == line.strip() != ""
        assert "\n" not in line
        assert turn.speaker is None or line.startswith(turn.speaker)
        assert document.turn_at(turn.start) == document.turn_at(turn.end - 1) == turn


@pytest.mark.parametrize(
    "turns",
    [
        (Turn(0, 0, "A", None),),
        (Turn(0, 13, "A", None),),
        (Turn(-1, 2, "A", None),),
        (Turn(0, 5, "A", None), Turn(4, 6, "B", None)),
        (Turn(6, 8, "A", None), Turn(0, 2, "B", None)),
        (Turn(0, 2, None, -1.0),),
        (Turn(0, 2, None, float("nan")),),
    ],
)
def test_turns_that_do_not_describe_the_text_are_refused(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(ValueError, match="turn"):
        Document("d", "one two four", (Page(1, None, 0, 12),), turns=turns)


def test_the_hash_depends_on_turns_and_stays_what_it_was_without() -> None:
    document = Document("d", "one", (Page(1, None, 0, 3),))
    assert document.content_hash == "506003f917d8085fee83b17ba77a698bdbf864335ed09baf39c4cd809ce3b0d2"
    turns = [(Turn(0, 3, "A", 1.0),), (Turn(0, 3, "A", 2.0),), (Turn(0, 3, "B", 1.0),), (Turn(0, 2, "A", 1.0),)]
    assert len({dataclasses.replace(document, turns=t).content_hash for t in [(), *turns]}) == 5


def test_the_parser_is_imported_for_captions_only() -> None:
    code = (
        "import sys; from infinipot_llm.documents import Document; Document.from_bytes(b'x', name='x.txt');"
        "print('webvtt' in sys.modules); Document.from_bytes(b'WEBVTT\\n\\n00:01.000 --> 00:02.000\\nx', name='-');"
        "print('webvtt' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_affiliations_and_roles_stay_in_the_text() -> None:
    """They were dropped with the label, although they answer who somebody is."""
    cues = ["Keith Weiss, Morgan Stanley: Where were you?", "Amy Hood (Chief Financial Officer): At home.", "Alone.",
            "Keith Weiss: When?", "Amy Hood: Then."]  # fmt: skip
    text = "WEBVTT\n\n" + "\n\n".join(f"00:0{i}.000 --> 00:0{i}.900\n{cue}" for i, cue in enumerate(cues))
    document = read(text, "a.vtt")
    assert document.text.split("\n\n") == [
        "Keith Weiss, Morgan Stanley: Where were you?", "Amy Hood (Chief Financial Officer): At home. Alone.",
        "Keith Weiss: When?", "Amy Hood: Then.",
    ]  # fmt: skip
    assert [turn.speaker for turn in document.turns] == ["Keith Weiss", "Amy Hood"] * 2
