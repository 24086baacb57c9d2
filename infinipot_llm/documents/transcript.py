"""Transcripts as plain text: whose turn it is, told from "Name:" at the start of lines and from time stamps.

The text stays as it is; what is found are ranges of it. A wrong speaker in a citation is worse than none, so a text is
taken for a transcript only when it cannot well be anything else: its labels are names, come back, alternate as people
do who talk, and stand before sentences; its times never run backwards, at the pace of speech.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from infinipot_llm.documents.document import Turn
from infinipot_llm.documents.lines import trim

_MIN_TURNS = 5
_MAX_NAME = 60
_MAX_NAME_WORDS = 6
_MAX_AFFILIATION = 40

_MAX_STOPPED_SHARE = 0.1
"""Lines labelled with what is no name ("Note:"), as a share of those labelled with what may be one."""

_MIN_TURNS_PER_SPEAKER = 2.0
_MIN_RETURNING_SHARE = 0.7
"""Share of the turns whose speaker has more than one: the headwords of a glossary come once each."""

_MIN_PING_PONG = 0.1
"""Share of the turns that are followed by another's and then by the first speaker's again. Records with three fields
or more repeat in one order and have none of these."""

_MIN_SENTENCES = 0.5
"""Share of the turns that hold the end of a sentence; the values of fields seldom do."""

_MAX_MEAN_TURN = 2500
_MAX_LONGEST_SHARE = 0.6
_MAX_HEADER_SHARE, _MAX_HEADER = 0.25, 3000
"""A title and a list of those present may come before the first turn, but not a chapter."""

_MIN_STAMPED_LINES = 0.3
_MAX_BACKWARD_SHARE = 0.05
_MIN_PACE, _MAX_PACE = 3.0, 30.0
"""Characters a second from the first time stamp to the last; people speak about fifteen. Tables of contents and race
results are slower; verse numbers (3:16, 3:17) and times of day read as minutes and seconds are faster."""

_MAX_FIRST_TIME = 6 * 3600.0
"""Seconds; where the first stamp is later, they are times of day, which do not say where in the recording one is."""

_EARLIEST_HOUR = 6 * 60.0
"""What 6:00 reads as in minutes and seconds: the start of a timetable."""

_STAMP = r"(?:(\d{1,3}):)?(\d{1,2}):([0-5]\d)(?:[.,]\d{1,3})?(?![\d:])"
_OPENING_STAMP = re.compile(
    rf"(?P<open>[\[(]?){_STAMP}(?:\s*(?:-->|[-–—])\s*(?:\d{{1,3}}:)?\d{{1,2}}:[0-5]\d[\d.,]*)?[\])]?[ \t]*[-–—]?[ \t]*"
)
_NAME_AND_STAMP = re.compile(
    rf"(?P<name>[^\n:\[(]{{2,{_MAX_NAME}}}?)[ \t]*[\[(]?(?<!\d){_STAMP}[\])]?[ \t]*(?P<colon>:?)[ \t]*"
)
_LABEL = re.compile(r"(?P<name>[^\n:：]{2,110}?)[*_\]]*(?::[*_]*(?=\s|\Z)|：[*_]*)[ \t]*")
_PARENTHESIS = re.compile(r"\s*\(.{1,90}\)\Z")
_NAME_CHARACTERS = re.compile(r"[\w.'’#·-]+\Z")
_ANONYMOUS = re.compile(r"(?i:speaker|spk|voice)[ _-]?\d{1,3}\Z")
_ASIDE_AT_END = re.compile(r"\n[ \t]*(?:\[[^\[\]\n]{1,60}\]|\([^()\n]{1,60}\))\s*\Z")
_SENTENCE_END = re.compile(r"[.!?…。！？؟।]")
_QUESTION = re.compile(r"[?？؟]")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_PARTICLES = _words("al and bin da de del den der des di du el la le of ter the van von y zu")

# Labels that people write before lines which nobody says. Only their first word is compared.
_NO_NAMES = _words(
    """
    abstract achtung action address advantages advice after agenda aim alternatively amount answer appendix argument
    arguments article attention attendees author authors background beispiel before benefits body bug but caution cc
    chapter chorus city claim class code color colour comment comments conclusion cons content contents context
    copyright cost critical data date day debug default definition deprecated description details difficulty
    disadvantages discussion duration effect email english error evidence example examples exception exercise
    expected explanation fact fatal feature figure file fix format french from german goal height hence hint hinweis
    however id important in indeed info information ingredients input instructions introduction issue item keywords
    kind language law lemma length level license link list location materials meaning merke message method model
    moreover myth name names next nota notes note notice number object objective observation one options order
    origin other otherwise output overview page parameters part password path phone place please plot point
    pre-condition prerequisites preparation price problem procedure proof property pros purpose quantity question
    quote rating reason recall recipe recommendation reference references related remark remarks remarque remember
    reply-to requirements response result results return returns risk rule scene section see sent serves setting
    similarly size so solution source spanish stage status step steps subject subtitle suggestion summary symptoms
    synonyms syntax table tags task term test then theorem therefore this thus time tip tips title to todo topic
    total trace translation two type unit updated url usage use user-agent valeur value variant verse version volume
    warn warning weight what when where why year yield yields zutaten
    classifier metadata-version project-url provides-extra requires-dist requires-python
    예 예시 참고 주의 문제 답 제목 날짜 注 注意 例 例如 备注 答 问 問 標題 标题 日期
    """
)


@dataclass(frozen=True, slots=True)
class Label:
    """What opens a line.

    Attributes:
        name: The name before the colon, without an affiliation ("KEITH WEISS, Morgan Stanley").
        is_name: Whether it may be one at all; "Note" is not.
        length: Characters up to what is said.
    """

    name: str
    is_name: bool
    length: int


@dataclass(frozen=True, slots=True)
class _Opening:
    """A line that may begin a turn."""

    start: int
    said: int  # where what is said starts
    label: Label | None
    time: float | None
    has_hours: bool = False


def find_turns(text: str) -> tuple[Turn, ...]:
    """Find the turns of a transcript.

    Args:
        text: The text of a document, cleaned.

    Returns:
        The turns in order, or nothing if the text is not, beyond doubt, a transcript.
    """
    openings, lines = _openings(text)
    if len(openings) < _MIN_TURNS:
        return ()
    openings = _without_header(text, openings)
    labelled = [opening for opening in openings if _name(opening)]
    stopped = sum(opening.label is not None and not opening.label.is_name for opening in openings)
    if len(openings) < _MIN_TURNS or stopped > _MAX_STOPPED_SHARE * max(len(labelled), _MIN_TURNS):
        return ()
    stamped = [opening for opening in openings if opening.time is not None]
    if _are_times(text, stamped, lines, labelled):
        return _timed_turns(text, openings, stamped)
    if _are_speakers(text, labelled):
        return _turns(text, [(o, _name(o), None) for o in labelled])
    return ()


def split_label(line: str) -> Label | None:
    """Tell a line's label ("Name:") from what is said, or give None where it has none that looks like a name."""
    match = _LABEL.match(line)
    if match is None:
        return None
    name = match.group("name").strip(" \t*_[]")
    bare = _spoken_name(name)
    return None if bare is None else Label(bare, not _is_stopped(bare), match.end())


def recurring(names: Sequence[str]) -> bool:
    """Whether labels come back often enough to be those of speakers."""
    return bool(names) and len(names) >= _MIN_TURNS_PER_SPEAKER * len(set(names))


def _is_stopped(name: str) -> bool:
    return name.split()[0].strip(".").lower() in _NO_NAMES


def _spoken_name(label: str) -> str | None:
    """Give the name in a label, or None if its words are not written as those of a name are."""
    name, _, affiliation = (part.strip() for part in _PARENTHESIS.sub("", label).partition(","))
    if affiliation and (len(affiliation) > _MAX_AFFILIATION or affiliation[0].islower()):
        return None
    if not 1 < len(name) <= _MAX_NAME:
        return None
    if _ANONYMOUS.match(name):
        return name
    words = re.split(r"[\s/&]+", name)
    if not words[0] or len(words) > _MAX_NAME_WORDS:
        return None
    for i, word in enumerate(words):
        if not _NAME_CHARACTERS.match(word):
            return None
        if word.isdigit() and i:
            continue
        is_lower = word[0].islower() and not (word[1:2] in ("'", "’") and word[2:3].isupper())  # d'Entremont
        if not word[0].isalpha() or (is_lower and not (i and word in _PARTICLES)):
            return None
    return name if sum(character.isalnum() for character in name) > 1 else None


def _openings(text: str) -> tuple[list[_Opening], int]:
    """Give the lines that open with a label or a time stamp, and the number of all lines that hold something."""
    found = []
    lines = 0
    start = 0
    while start < len(text):
        newline = text.find("\n", start)
        end = len(text) if newline < 0 else newline
        left = start
        while left < end and text[left] in " \t":
            left += 1
        if left < end:
            lines += 1
            opening = _opening(text[left : min(end, left + 240)], left) if left - start < 4 else None
            if opening is not None:
                found.append(opening)
        start = end + 1
    return found, lines


def _opening(line: str, start: int) -> _Opening | None:
    """Read what opens a line: "[00:12] Name: ...", "00:12 ...", "Name (00:12): ...", "Name 00:12", "Name: ..."."""
    stamp = _OPENING_STAMP.match(line)
    if stamp is not None:
        said = stamp.end()
        label = split_label(line[said:])
        return _Opening(start, start + said + (label.length if label else 0), label, *_seconds(stamp))
    both = _NAME_AND_STAMP.match(line)
    if both is not None:
        is_alone = both.end() == len(line)
        is_marked = bool(both.group("colon")) or line[: both.end()].rstrip(" \t:")[-1] in "])"
        name = _spoken_name(both.group("name").strip(" \t*_-–—,|"))
        if name is not None and (is_alone or is_marked):
            return _Opening(start, start + both.end(), Label(name, not _is_stopped(name), both.end()), *_seconds(both))
    label = split_label(line)
    if label is None:
        return None
    stamp = _OPENING_STAMP.match(line, label.length)
    if stamp is not None:
        return _Opening(start, start + stamp.end(), label, *_seconds(stamp))
    return _Opening(start, start + label.length, label, None)


def _seconds(stamp: re.Match[str]) -> tuple[float, bool]:
    """Give the time of a stamp in seconds, and whether it has hours; both patterns have it in the same groups."""
    hours, minutes, seconds = stamp.group(2, 3, 4)
    return float(int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)), hours is not None


def _without_header(text: str, openings: list[_Opening]) -> list[_Opening]:
    """Leave out what comes before the talk: "Date: ...", and other labels that do not come back nor open a sentence."""
    count = Counter(map(_name, openings))
    for i, opening in enumerate(openings):
        if opening.time is not None:
            return openings[i:]
        if _name(opening) is not None:
            end = openings[i + 1].start if i + 1 < len(openings) else len(text)
            if count[_name(opening)] > 1 or _SENTENCE_END.search(text, opening.said, end):
                return openings[i:]
    return []


def _are_times(text: str, stamped: list[_Opening], lines: int, labelled: list[_Opening]) -> bool:
    """Whether the time stamps are those of a recording."""
    if len(stamped) < _MIN_TURNS:
        return False
    of_names = sum(opening.time is not None for opening in labelled)
    are_turns = of_names >= 0.8 * max(len(labelled), _MIN_TURNS) and recurring([_name(o) or "" for o in labelled])
    if not are_turns and len(stamped) < _MIN_STAMPED_LINES * lines:
        return False
    times = [opening.time or 0.0 for opening in stamped]
    backwards = sum(later < earlier for earlier, later in pairwise(times))
    if backwards > _MAX_BACKWARD_SHARE * len(times) or times[0] > _MAX_FIRST_TIME or times[-1] <= times[0]:
        return False
    if sum(later - earlier == 1 for earlier, later in pairwise(times)) > 0.5 * len(times):
        return False  # verse by verse
    is_timetable = times[0] >= _EARLIEST_HOUR and not any(opening.has_hours for opening in stamped)
    if is_timetable and all(time % 5 == 0 for time in times):
        return False
    starts = [opening.start for opening in stamped[1:]]
    said = [len(text[opening.said : end].strip()) for opening, end in zip(stamped, starts, strict=False)]
    return _MIN_PACE <= sum(said) / (times[-1] - times[0]) <= _MAX_PACE and sum(map(bool, said)) >= 0.8 * len(said)


def _are_speakers(text: str, labelled: list[_Opening]) -> bool:
    """Whether the labels are the names of people who talk with each other."""
    names = [_name(opening) or "" for opening in labelled]
    count = Counter(names)
    returning = [name for name in names if count[name] > 1]
    if len(names) < _MIN_TURNS or not recurring(names) or len(set(returning)) < 2:
        return False
    if len(returning) < _MIN_RETURNING_SHARE * len(names):
        return False
    ping_pong = sum(a == c != b for a, b, c in zip(names, names[1:], names[2:], strict=False))
    if ping_pong < _MIN_PING_PONG * len(names):
        return False
    ends = [opening.start for opening in labelled[1:]] + [len(text)]
    said = [text[opening.said : end].strip() for opening, end in zip(labelled, ends, strict=True)]
    if sum(bool(_SENTENCE_END.search(words)) for words in said) < _MIN_SENTENCES * len(said):
        return False
    spoken = sum(map(len, said))
    if spoken > _MAX_MEAN_TURN * len(said) or max(map(len, said)) > max(_MAX_LONGEST_SHARE * spoken, _MAX_MEAN_TURN):
        return False
    if labelled[0].start > max(_MAX_HEADER_SHARE * len(text), min(_MAX_HEADER, 0.5 * len(text))):
        return False
    # Full names and names in capitals speak for themselves; single words need a question among them to be a talk.
    plain = sum(len(name.split()) < 2 and not name.isupper() and not _ANONYMOUS.match(name) for name in names)
    return plain <= 0.2 * len(names) or any(_QUESTION.search(words) for words in said)


def _timed_turns(text: str, openings: list[_Opening], stamped: list[_Opening]) -> tuple[Turn, ...]:
    """Make turns of time stamps, with speakers where the labels that come with them are those of speakers."""
    names = [name for name in map(_name, stamped) if name]
    unstamped = [name for name in (_name(o) for o in openings if o.time is None) if name]
    has_names = recurring(names + unstamped) and (len(names) >= 0.5 * len(stamped) or recurring(unstamped))
    known = set(names if len(names) > len(unstamped) else names + unstamped) if has_names else set()
    turns: list[tuple[_Opening, str | None, float | None]] = []
    speaker = None
    for opening in openings:
        name = _name(opening)
        if opening.time is None and name not in known:
            continue
        # A time stamp alone, within what somebody says, does not end it.
        speaker = name if name in known else speaker
        turns.append((opening, speaker, opening.time))
    return _turns(text, turns)


def _turns(text: str, begun: Sequence[tuple[_Opening, str | None, float | None]]) -> tuple[Turn, ...]:
    """Let every turn reach to the next, but for white space and asides ("[MUSIC]") at its end."""
    ends = [opening.start for opening, _, _ in begun[1:]] + [len(text)]
    turns = []
    for (opening, speaker, time), limit in zip(begun, ends, strict=True):
        end = trim(text, opening.start, limit)[1]
        while aside := _ASIDE_AT_END.search(text, max(opening.start, end - 80), end):
            end = trim(text, opening.start, aside.start())[1]
        turns.append(Turn(opening.start, end, speaker, time))
    return tuple(turns)


def _name(opening: _Opening) -> str | None:
    return opening.label.name if opening.label is not None and opening.label.is_name else None
