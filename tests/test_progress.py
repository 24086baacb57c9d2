"""The progress bar: on a terminal it shows tokens, cycles, speed and time left; elsewhere nothing."""

from __future__ import annotations

import io
import sys

import pytest

from infinipot_llm.pot.reader import ReadStats
from infinipot_llm.progress import reading_bar


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


def test_a_file_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with reading_bar(2000, True) as told:
        assert told is None
    assert log.getvalue() == ""


def test_a_function_of_the_callers_is_passed_on() -> None:
    seen: list[ReadStats] = []
    with reading_bar(10, seen.append) as told:
        assert told is not None
        told(ReadStats(10, 5))
    assert [s.tokens_read for s in seen] == [5]
