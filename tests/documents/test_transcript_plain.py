from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.documents import Document
from infinipot_llm.documents.clean import clean
from infinipot_llm.documents.transcript import find_turns

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

TALK = """Board meeting
Date: 3 May
Present: everyone

ANNA BERG: Good morning. Shall we start?
BEN DE VRIES, Finance: Yes.

[MUSIC]

ANNA BERG: Then the budget. It has grown by a third.
Note that this is before taxes.
BEN DE VRIES: I know.
ANNA BERG: So do I.
BEN DE VRIES: Good.

(Adjourned.)
"""


def said(text: str) -> list[tuple[float | None, str | None, str]]:
    return [(turn.time, turn.speaker, text[turn.start : turn.end]) for turn in find_turns(text)]


def speakers(text: str) -> list[str | None]:
    return [turn.speaker for turn in find_turns(text)]


def times(text: str) -> list[float | None]:
    return [turn.time for turn in find_turns(text)]


def test_names_before_colons_open_turns() -> None:
    assert said(TALK) == [
        (None, "ANNA BERG", "ANNA BERG: Good morning. Shall we start?"),
        (None, "BEN DE VRIES", "BEN DE VRIES, Finance: Yes."),
        (
            None,
            "ANNA BERG",
            "ANNA BERG: Then the budget. It has grown by a third.\nNote that this is before taxes.",
        ),
        (None, "BEN DE VRIES", "BEN DE VRIES: I know."),
        (None, "ANNA BERG", "ANNA BERG: So do I."),
        (None, "BEN DE VRIES", "BEN DE VRIES: Good."),
    ]


def test_the_text_of_a_transcript_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "board.txt"
    path.write_text(TALK)
    document = Document.from_file(path)
    assert document.text == TALK
    assert document.turns == find_turns(TALK) == Document.from_bytes(TALK.encode(), name="-").turns
    assert document.turns == Document.from_text(TALK).turns
    assert document.span(TALK.index("It has grown"), len(TALK)).speaker == "ANNA BERG"
    assert document.span(TALK.index("[MUSIC]"), len(TALK)).speaker is None
    assert document.span(0, 5).speaker is None


@pytest.mark.parametrize("suffix", [".log", ".yaml", ".py", ".csv"])
def test_other_text_files_are_not_searched(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"board{suffix}"
    path.write_text(TALK)
    assert Document.from_file(path).turns == ()
    assert Document.from_bytes(TALK.encode(), name=path.name).turns == ()  # the same bytes, the same document


LINES = [
    "So let us go through the plan for the coming year, point by point, if you will.",
    "Yes, gladly. I have read it twice and I have a few things to say about it.",
    "Do you think it can be done with the people that we have in the house today?",
    "Hardly. We would need four more, two of them from the spring on at the latest.",
    "Then we have to talk about the money first, and about the rooms after that.",
    "I agree with that, and I would like to ask Carl to prepare the numbers for us.",
]


@pytest.mark.parametrize(
    ("form", "has_names"),
    [
        ("[00:{m:02}:{s:02}] {name}: {line}", True),
        ("{m:02}:{s:02} {name}: {line}", True),
        ("(0:{m:02}:{s:02}) {name}: {line}", True),
        ("[{m:02}:{s:02}.000 --> 59:59.000]  {line}", False),
        ("{m}:{s:02}\n{line}", False),
        ("{name} {m:02}:{s:02}\n{line}\n", True),
        ("{name}  0:{m:02}:{s:02}\n{line}\n", True),
        ("{name} ({m:02}:{s:02}): {line}", True),
        ("{name} [{m:02}:{s:02}] {line}", True),
        ("{name}: [{m:02}:{s:02}] {line}", True),
        ("**{name}:** [{m:02}:{s:02}] {line}", True),
    ],
)
def test_time_stamps_in_all_their_forms(form: str, has_names: bool) -> None:
    names = ["Anna Berg", "Ben"] * 3
    text = "\n".join(form.format(m=i // 10, s=6 * i % 60, name=names[i], line=LINES[i]) for i in range(6))
    assert times(text) == [0.0, 6.0, 12.0, 18.0, 24.0, 30.0]
    assert speakers(text) == (names if has_names else [None] * 6)
    assert [text[turn.end - 9 : turn.end] for turn in find_turns(text)] == [line[-9:] for line in LINES]


def test_hours_are_read_and_times_of_day_are_not_times_in_a_recording() -> None:
    form = "[{}:02:{:02}] {}: {}"
    names = ["ANNA", "BEN"] * 3
    late = "\n".join(form.format(1, 6 * i, names[i], LINES[i]) for i in range(6))
    assert times(late) == [3720.0 + 6 * i for i in range(6)]
    clock = "\n".join(form.format(14, 6 * i, names[i], LINES[i]) for i in range(6))
    assert times(clock) == [None] * 6
    assert speakers(clock) == names


def test_a_time_stamp_alone_goes_on_with_the_speaker() -> None:
    text = "\n".join(
        f"[00:00:{6 * i:02}] " + ("" if i == 3 else f"{name}: ") + LINES[i % 6]
        for i, name in enumerate(["ANNA", "BEN"] * 4)
    )
    assert speakers(text) == ["ANNA", "BEN", "ANNA", "ANNA", "ANNA", "BEN", "ANNA", "BEN"]


def test_single_names_and_other_scripts() -> None:
    talk = "{0}: Ready?\n{1}: Yes.\n{0}: Sure?\n{1}: Yes!\n{0}: Go.\n{1}: Fine."
    for pair in (
        ("Marketing", "User Interface"),
        ("김철수", "이영희"),
        ("Speaker 1", "Speaker 2"),
        ("SPEAKER_00", "Анна"),
    ):
        assert speakers(talk.format(*pair)) == [*pair] * 3
    assert speakers(talk.replace(": ", "：").format("张三", "李四")) == ["张三", "李四"] * 3
    hansard = ("Mr. Chris d'Entremont (West Nova, CPC)", "The Acting Chair (Hon. Ann Roe (Bay, Lib.))")
    assert speakers(talk.format(*hansard)) == ["Mr. Chris d'Entremont", "The Acting Chair"] * 3


NO_TRANSCRIPTS = {
    "notes in prose": "The pump must be off before you open it. Is it? Look.\n"
    "Note: It may be hot.\nWarning: Do not touch.\n"
    "Then turn the wheel.\nNote: Wear gloves.\nWarning: It bites.\nNote: Wait.\nWarning: Run.\nNote: Done?\n",
    "capitals": "WARNING: Off?\nCAUTION: Hot.\nWARNING: Hot.\nCAUTION: Wet.\nWARNING: Dry.\nCAUTION: Cold.\n" * 3,
    "glossary": "".join(
        f"{word}: What is it? A thing of its kind.\n"
        for word in ("Ant", "Bee", "Cat", "Dog", "Elk", "Fox", "Gnu", "Hen", "Ibis", "Jay")
    ),
    "recipe": "Ingredients: Flour. Eggs.\nMethod: Stir. Bake?\nServes: 4.\n\n" * 5,
    "records": "Composer: J. Bach.\nKey: C major.\nOpus: 1. Is it?\n\n" * 6,
    "address book": "Name: Ann\nCity: Rome\nPhone: 12:31\n\n" * 6,
    "scripture": "".join(
        f"John 3:{v} For God so loved the world, that he gave his Son to it, v.\n" for v in range(14, 30)
    ),
    "verse heads": "".join(f"John 3:{v}\nFor God so loved the world, that he gave his Son.\n" for v in range(14, 30)),
    "short verses": "".join(f"3:{v} He went on, he slept.\n" for v in range(10, 36)),
    "verses": "".join(
        f"3:{v} And it came to pass in those days that there went out a decree from the ruler of that land?\n"
        for v in range(10, 36)
    ),
    "devotions": "John 3:16\nFor God so loved the world.\n\nRomans 8:28\nAnd we know.\n\n" * 4,
    "timetable": "".join(
        f"{h}:{m:02} Talk {h}: on the use of things, in the large hall\n" for h in range(9, 18) for m in (0, 30)
    ),
    "chapters": "0:00 Intro\n2:13 Setup\n5:45 First steps\n9:10 Testing\n14:02 Questions\n20:00 End\n",
    "race": "".join(f"Anna Berg {m}:31\n" for m in range(12, 30)),
    "log": "".join(f"[12:31:{s:02}] INFO: Started? Yes.\n[12:31:{s:02}] ERROR: Failed.\n" for s in range(20)),
    "code": "def f(x: int) -> str:\n    if x:\n        return y\n    Else: Z.\n    Try: W?\n" * 5,
    "dialogue in code": "messages = [\n"
    + '  {"role": "User", "text": "Hi?"},\n  {"role": "Bot", "text": "Yo."},\n' * 5
    + "]\n",
    "faq": "Q: What is it?\nA: It is a pot.\nQ: Why?\nA: It holds.\nQ: How?\nA: It is tight.\n",
    "package": "Classifier: Topic. One?\nRequires-Dist: a.b\nClassifier: Topic. Two.\nRequires-Dist: c.d\n" * 4,
    "mail": "From: Ann Berg\nTo: Ben\nSubject: Lunch?\nSent: today\n\nDear Ben, shall we?\n\n" * 5,
    "too short": "Anna: Ready?\nBen: Yes.\nAnna: Go.\nBen: Fine.\n",
    "one label": "Anna: One?\n" * 9,
    "dialogue in a book": "It was night. " * 4000
    + "\nAnna: Ready?\nBen: Yes.\nAnna: Go.\nBen: Fine.\nAnna: Well.\nBen: So.\n",
    "heads in prose": "Background: We ask. Why?\nMethods: We count.\nResults: Many.\n"
    "Discussion: So what?\nConclusion: So.\n" * 3,
    "phrase book": "English: Where is it?\nFrench: Où est-ce ?\n" * 6,
}


@pytest.mark.parametrize("kind", NO_TRANSCRIPTS)
def test_what_only_looks_like_a_transcript_has_no_turns(kind: str) -> None:
    assert find_turns(NO_TRANSCRIPTS[kind]) == ()


lines = st.sampled_from(
    [
        *("Anna: Yes?", "Ben: No.", "Note: so", "[00:01] Anna: hm.", "[00:09] So it goes with them."),
        *("Anna 00:12", "x" * 300, "Anna (00:20):", "12:31", "[MUSIC]", "", "  \t", "\x0c", "：", ":", "**"),
        *("1:02:03 -->", "(" * 50, "A, B: c"),
    ]
)


@settings(deadline=None, max_examples=80)
@given(st.lists(lines, max_size=25))
def test_turns_are_ranges_of_any_text(drawn: list[str]) -> None:
    text = clean("\n".join(["start.", *drawn]))
    document = Document.from_text(text)
    assert document.text.replace("\n", "") == text.replace("\n", "")
    for turn in document.turns:
        cut = document.text[turn.start : turn.end]
        assert cut == cut.strip() != ""
        assert document.span(turn.start, turn.end).speaker == turn.speaker
        assert document.span(turn.start, turn.end).time == turn.time


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (
            "EP_03_Behind_the_Tech_Kevin_Scott_Podcast_with_Andrew_Ng.txt",
            {"KEVIN SCOTT": 53, "ANDREW NG": 46, "CHRISTINA WARREN": 11, "KEVIN SCOTT/ANDREW NG": 2},
        ),
        (
            "Ep_61_Behind_the_Tech_Kevin_Scott_Podcast_with_Lisa_Su.txt",
            {"KEVIN SCOTT": 62, "LISA SU": 49, "CHRISTINA WARREN": 11},
        ),
        # Analysts are named with their bank at their first turn and without it at their second.
        ("TranscriptFY24Q1.txt", {"BRETT IVERSEN": 10, "AMY HOOD": 9, "SATYA NADELLA": 7, "KEITH WEISS": 2}),
        ("TranscriptFY24Q2.txt", {"BRETT IVERSEN": 10, "AMY HOOD": 9, "SATYA NADELLA": 8, "TYLER RADKE": 1}),
    ],
)
def test_real_transcripts(name: str, count: dict[str, int]) -> None:
    path = SHARED / "transcripts" / name
    if not path.exists():
        pytest.skip("needs ../shared/data/transcripts")
    document = Document.from_file(path)
    found = Counter(turn.speaker for turn in document.turns)
    assert {speaker: found[speaker] for speaker in count} == count
    assert sum(found.values()) == (41 if "FY24" in name else sum(count.values()))
    assert all(document.text.startswith(turn.speaker or "?", turn.start) for turn in document.turns)
    assert {turn.time for turn in document.turns} == {None}  # none of the four has time stamps
    spoken = sum(turn.end - turn.start for turn in document.turns)
    assert spoken > 0.97 * len(document.text)


def test_real_meetings() -> None:
    path = SHARED / "qa" / "qmsum.val.jsonl"
    if not path.exists():
        pytest.skip("needs ../shared/data/qa")
    for row in path.read_text(encoding="utf-8").splitlines():
        meeting = json.loads(row)["meeting_transcripts"]
        document = Document.from_text("\n".join(f"{turn['speaker']}: {turn['content']}" for turn in meeting))
        # "An hon. member" and the like are no names as names are written; their words go to the speaker before.
        assert 0.99 * len(meeting) <= len(document.turns) <= len(meeting)
