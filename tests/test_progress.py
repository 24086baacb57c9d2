"""How far reading is: a bar on a terminal and in a notebook, a line now and then in a file."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from infinipot_llm import progress
from infinipot_llm.pot.reader import ReadStats
from infinipot_llm.progress import duration, reading_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with reading_bar(2000, True) as told:
        assert told is not None
        for read in (500, 1500, 2000):
            told(ReadStats(2000, read, slots=300, budget=400, cycles=read // 500, seconds=1.0))
    assert "reading" in screen.getvalue()
    assert "2.00k/2.00k" in screen.getvalue()
    assert "cycles=4" in screen.getvalue()
    assert "tokens/s" in screen.getvalue()


def test_a_notebook_sees_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    assert not cell.isatty()
    monkeypatch.setattr(sys, "stderr", cell)
    with reading_bar(2000, True) as told:
        assert told is not None
        told(ReadStats(2000, 500, seconds=1.0))
    assert "500/2.00k" in cell.getvalue()


def test_a_file_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with reading_bar(2000, True) as told:
        assert told is not None
        for seconds, read in ((0, 0), (10, 200), (20, 400), (40, 800), (50, 1000), (75, 1500), (120, 2000)):
            now[0] = seconds
            told(ReadStats(2000, read, seconds=seconds))
    assert log.getvalue() == (
        "reading: 40 % of 2,000 tokens, about 60 s left\nreading: 75 % of 2,000 tokens, about 25 s left\n"
    )


def test_a_short_reading_tells_a_file_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with reading_bar(2000, True) as told:
        assert told is not None
        told(ReadStats(2000, 500, seconds=1.0))
    assert log.getvalue() == ""


@pytest.mark.parametrize("nothing", [None, False])
def test_nobody_is_told_unasked(nothing: bool | None) -> None:
    with reading_bar(10, nothing) as told:
        assert told is None


@pytest.mark.parametrize(("seconds", "said"), [(39.4, "39 s"), (150, "2 min"), (7200, "2.0 h")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_function_of_the_callers_is_passed_on() -> None:
    seen: list[ReadStats] = []
    with reading_bar(10, seen.append) as told:
        assert told is not None
        told(ReadStats(10, 5))
    assert [s.tokens_read for s in seen] == [5]
