"""Captions (WebVTT, SubRip) as readable prose: a paragraph a turn, with its speaker and its time.

webvtt-py finds the cues, also in careless files; what cues say is joined here. It is imported when it is needed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from infinipot_llm.documents.clean import clean, one_line
from infinipot_llm.documents.document import Turn
from infinipot_llm.documents.extracted import Extracted
from infinipot_llm.documents.transcript import recurring, split_label
from infinipot_llm.errors import DocumentError

TURN_BREAK = "\n\n"
"""Between two turns: a blank line, so that sentences and passages end with the turn, however short its line is."""

_TIME = r"(?:\d+:)?\d{1,2}:\d{1,2}[.,]\d{1,3}"
_TIMING = re.compile(rf"^[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}", re.MULTILINE)
_TIMING_COMMA = re.compile(
    r"^([ \t]*(?:\d+:)?\d{1,2}:\d{1,2}),(\d{1,3}[ \t]*-->[ \t]*(?:\d+:)?\d{1,2}:\d{1,2})[.,](?=\d)", re.M
)
_CLOCK = re.compile(r"\d:")
_BLANK_LINES = re.compile(r"\r?\n(?:[ \t]*\r?\n)+")
_BLOCK_START = re.compile(r"(?:[^\n]*\n)?[^\n]*-->|(?:NOTE|STYLE|REGION)(?=\s|\Z)|\Z")
_VTT_MAGIC = re.compile(r"WEBVTT(?=[ \t\r\n]|\Z)")
_SRT_START = re.compile(r"(?:\d+[ \t]*\r?\n)?[ \t]*\d+:\d{1,2}:\d{1,2}[.,]\d{1,3}[ \t]*-->[ \t]*\d+:\d{1,2}:\d")
_INDEX_FIRST = re.compile(r"\d+[ \t]*\r?\n")

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<\d[\d:.]*>|</?>|\{\\[^{}]*\}")
_VOICE = re.compile(r"<v(?:\.[^\s.<>]+)*\s+([^<>]+)>")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]\w{1,31});")
_CHANGE = re.compile(r"\s*>>+\s*")
_SENTENCE_END = re.compile(r"[.!?…。！？؟।][\"'”’»)\]」』]*\Z")

_MAX_NAME = 100
_MIN_LABELS = 3

_MAX_OVERLAP = 60
_MAX_ROLLING_GAP = 1.0
_MIN_ROLLING_SHARE = 0.4
"""Share of the cues that repeat what the cue before shows, from which on captions roll: automatic ones do nearly
always, while in others "No." after "No." was said twice."""

_PARAGRAPH = 60.0
"""Seconds after which text without speakers is divided, at the end of a sentence; without one, half as much later."""

_LONG_TURN = 180.0
"""Seconds after which a speaker's turn is divided alike, so that citations from a lecture have a time of use."""

_PAUSE, _MIN_PARAGRAPH = 4.0, 20.0
"""Seconds of silence that divide text without speakers, unless what came before them is shorter than the second."""


@dataclass(frozen=True, slots=True)
class _Line:
    speaker: str | None
    text: str
    is_change: bool = False
    label: str | None = None  # the speaker as written, with affiliation or role, where a label opens the line


class _Word(NamedTuple):
    speaker: str | None
    text: str
    is_change: bool  # another speaker begins with it
    label: str | None  # of the line, with its first word


@dataclass(frozen=True, slots=True)
class _Cue:
    start: float
    end: float
    lines: Sequence[_Line]

    def words(self) -> list[_Word]:
        """Give the words of all lines."""
        return [
            _Word(line.speaker, word, line.is_change and i == 0, line.label if i == 0 else None)
            for line in self.lines
            for i, word in enumerate(line.text.split())
        ]


@dataclass(slots=True)
class _Draft:
    speaker: str | None
    label: str | None  # what the turn is opened with
    time: float
    end: float
    words: list[str] = field(default_factory=list)


def caption_format(text: str, suffix: str) -> str | None:
    """Tell whether a text file holds captions: "vtt", "srt" or None.

    Args:
        text: The content of the file.
        suffix: The file's suffix, in lower case, for files that do not begin as captions should.
    """
    text = text.removeprefix("\ufeff").lstrip()
    if _VTT_MAGIC.match(text) and _TIMING.search(text):
        return "vtt"
    if _SRT_START.match(text):
        return "srt"
    return suffix[1:] if suffix in (".vtt", ".srt") else None


def read_captions(decoded: Extracted, kind: str, *, name: str) -> Extracted:
    """Turn captions into prose with turns.

    Args:
        decoded: The content of the file as text, with notes on its encoding.
        kind: "vtt" or "srt".
        name: What to call the file in messages.

    Raises:
        DocumentError: If no cue can be read, or none says anything.
    """
    text = " ".join(decoded.texts).removeprefix("\ufeff")
    notes = list(decoded.notes)
    cues = _parse(text, kind, name, notes)
    if any(later.start < earlier.start for earlier, later in pairwise(cues)):
        cues.sort(key=lambda cue: cue.start)
        notes.append("the captions are not in the order of their times: they were put into it")
    paragraphs = []
    turns = []
    start = 0
    for draft in _drafts(_unrolled(_with_labels(cues))):
        words = " ".join(draft.words)
        line = clean(f"{draft.label}: {words}" if draft.label else words).strip()
        if not line:
            continue
        paragraphs.append(line)
        turns.append(Turn(start, start + len(line), draft.speaker, draft.time))
        start += len(line) + len(TURN_BREAK)
    if not turns:
        raise DocumentError(f"{name} holds no text: its captions are empty.")
    return Extracted([TURN_BREAK.join(paragraphs)], [None], notes, turns)


def _parse(text: str, kind: str, name: str, notes: list[str]) -> list[_Cue]:
    """Let webvtt-py find the cues, and count what it leaves out."""
    import webvtt

    text = _with_arrows_told_apart(text)
    expected = _count_cues(text)
    if not expected:
        raise DocumentError(
            f"{name} holds no captions that can be read: export it again, or name it .txt if it is text."
        )
    if kind == "srt" and _INDEX_FIRST.match(text.lstrip()):
        source, kind = text.lstrip(), "srt"
    else:
        source, kind = _TIMING_COMMA.sub(r"\1.\2.", text.lstrip()), "vtt"
        if not _VTT_MAGIC.match(source):
            source = f"WEBVTT\n\n{source}"
        source = _without_blank_lines_within(source)
    try:
        captions = webvtt.from_buffer([source], format=kind).captions
        cues = [
            _Cue(_seconds(caption.start), _seconds(caption.end), list(_lines(caption.raw_text, kind)))
            for caption in captions
        ]
    except Exception as error:  # a parser may raise anything
        raise DocumentError(f"{name} holds captions that cannot be read: {one_line(str(error))}.") from error
    if not cues:
        raise DocumentError(
            f"{name} holds no captions that can be read: export it again, or name it .txt if it is text."
        )
    lost = expected - sum(bool(caption.raw_text.strip()) for caption in captions)
    if lost > 0:
        notes.append(f"{lost} of {expected} captions could not be read: their times are damaged")
    return cues


def _with_arrows_told_apart(text: str) -> str:
    """Let arrows behind a word be arrows of what is said: the parser takes every one for that of two times."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        before, arrow, _ = line.partition("-->")
        if arrow and any(map(str.isalpha, before)) and not _CLOCK.search(before):
            lines[i] = line.replace("-->", "→")
    return "\n".join(lines)


def _without_blank_lines_within(text: str) -> str:
    """Join what a blank line has cut off from its cue, as careless software writes them: by the standard it is lost."""
    blocks: list[str] = []
    for block in _BLANK_LINES.split(text):
        if blocks and not _BLOCK_START.match(block):
            blocks[-1] += f"\n{block}"
        else:
            blocks.append(block)
    return "\n\n".join(blocks)


def _count_cues(text: str) -> int:
    """Count the lines with an arrow that something follows."""
    lines = text.splitlines()
    return sum(
        "-->" in line and bool(following.strip()) and "-->" not in following for line, following in pairwise(lines)
    )


def _seconds(stamp: str) -> float:
    """Read HH:MM:SS.mmm, as webvtt-py gives it."""
    hours, minutes, seconds = stamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _lines(raw: str, kind: str) -> Iterator[_Line]:
    """Give the lines of a cue that say something, without tags, and who says them as far as tags tell."""
    if kind == "srt":
        raw = raw.replace("\\N", "\n")
    runs: list[tuple[str | None, str]] = []
    speaker = None
    position = 0
    for tag in _TAG.finditer(raw):
        runs.append((speaker, raw[position : tag.start()]))
        position = tag.end()
        voice = _VOICE.fullmatch(tag.group())
        if voice is not None:
            speaker = clean(one_line(_resolved(voice.group(1))))[:_MAX_NAME].strip() or None
        elif tag.group() == "</v>":
            speaker = None
    runs.append((speaker, raw[position:]))
    merged: list[tuple[str | None, list[str]]] = []
    for speaker, part in runs:
        if merged and merged[-1][0] == speaker:
            merged[-1][1].append(part)
        else:
            merged.append((speaker, [part]))
    for speaker, parts in merged:
        for line in clean(_resolved("".join(parts))).split("\n"):
            change = _CHANGE.match(line)
            said = line[change.end() :] if change else line
            if said.strip():
                yield _Line(speaker, said.strip(), change is not None)


def _resolved(text: str) -> str:
    return _ENTITY.sub(lambda match: html.unescape(match.group()), text)


def _with_labels(cues: list[_Cue]) -> list[_Cue]:
    """Take "Name:" at the start of lines for speakers, as meeting software writes them, if such names come back."""
    labels = [split_label(line.text) for cue in cues for line in cue.lines if line.speaker is None]
    names = [label.name for label in labels if label is not None and label.is_name]
    if len(names) < _MIN_LABELS or not recurring(names):
        return cues
    current: str | None = None
    result = []
    for cue in cues:
        lines = []
        for line in cue.lines:
            label = split_label(line.text) if line.speaker is None else None
            if label is not None and label.is_name:
                current = label.name
                written = line.text[: label.length].rstrip(" :\t").strip("*_[] ") or current
                lines.append(_Line(current, line.text[label.length :], line.is_change, written))
                continue
            if line.speaker is not None or line.is_change:
                current = None
            lines.append(_Line(line.speaker or current, line.text, line.is_change))
        result.append(_Cue(cue.start, cue.end, lines))
    return result


def _unrolled(cues: list[_Cue]) -> Iterator[tuple[_Cue, list[_Word]]]:
    """Give every cue with the words that the cue before it does not show already."""
    shown = [(cue, cue.words()) for cue in cues if any(line.text.strip() for line in cue.lines)]
    overlaps = [_overlap(*earlier, *later) for earlier, later in pairwise(shown)]
    hits = sum(map(bool, overlaps))
    is_rolling = hits >= 2 and hits >= _MIN_ROLLING_SHARE * len(overlaps)
    before: tuple[float, list[_Word]] | None = None
    for (cue, words), overlap in zip(shown, [0, *overlaps], strict=False):
        is_copy = before == (cue.start, words)
        before = (cue.start, words)
        yield cue, [] if is_copy else words[overlap:] if is_rolling else words


def _overlap(earlier: _Cue, shown: list[_Word], later: _Cue, words: list[_Word]) -> int:
    """Count the words that open a cue and that close the one before, at least that one's last line."""
    if later.start - earlier.end > _MAX_ROLLING_GAP:
        return 0
    last_line = len([line for line in earlier.lines if line.text.strip()][-1].text.split())
    for count in range(min(len(shown), len(words), _MAX_OVERLAP), last_line - 1, -1):
        if [word[:2] for word in shown[-count:]] == [word[:2] for word in words[:count]]:
            return count
    return 0


def _drafts(cues: Iterator[tuple[_Cue, list[_Word]]]) -> Iterator[_Draft]:
    """Join what a speaker says in consecutive cues, or what nobody is named for, into turns of a useful length."""
    draft: _Draft | None = None
    for cue, words in cues:
        if draft is not None and words and _is_full(draft, cue):
            yield draft
            draft = None
        for speaker, word, is_change, label in words:
            if draft is not None and (draft.speaker != speaker or (is_change and speaker is None)):
                yield draft
                draft = None
            if draft is None:
                draft = _Draft(speaker, label or speaker, cue.start, cue.end)
            draft.words.append(word)
        if draft is not None:
            draft.end = max(draft.end, cue.end)
    if draft is not None:
        yield draft


def _is_full(draft: _Draft, cue: _Cue) -> bool:
    """Whether a turn should end before a cue that might go on with it."""
    length = cue.start - draft.time
    limit = _PARAGRAPH if draft.speaker is None else _LONG_TURN
    if draft.speaker is None and length >= _MIN_PARAGRAPH and cue.start - draft.end >= _PAUSE:
        return True
    return length >= limit and (bool(_SENTENCE_END.search(draft.words[-1])) or length >= 1.5 * limit)
