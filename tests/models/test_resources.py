"""Memory: what some work took, where that is told."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from infinipot_llm.models import resources
from infinipot_llm.models.resources import anonymous_bytes, memory_taken, peak_memory_bytes

CPU = torch.device("cpu")
MB = 1 << 20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told by Linux alone")


@on_linux
def test_what_work_took_is_seen_although_it_is_gone() -> None:
    for _ in range(2):
        with memory_taken(CPU) as taken:
            passing = torch.ones(100 * MB, dtype=torch.uint8)
            for _ in range(20):  # longer than the watcher sleeps
                passing += 1
            del passing
        assert taken.before is not None
        assert taken.added is not None
        assert 95 * MB < taken.added < 200 * MB
    with memory_taken(CPU) as taken:
        pass
    assert taken.added is not None
    assert taken.added < 5 * MB


@on_linux
def test_what_was_let_go_of_is_not_taken_before() -> None:
    """Small blocks stay with the C library until somebody asks: work that takes them again takes as much as any."""
    held = [torch.ones(100_000, dtype=torch.uint8) for _ in range(1000)]
    last = torch.ones(100_000, dtype=torch.uint8)  # above them on the heap
    del held
    with memory_taken(CPU) as taken:
        blocks = [torch.ones(100_000, dtype=torch.uint8) for _ in range(1000)]
        time.sleep(5 * resources.INTERVAL)
    assert len(blocks) == 1000
    assert last.numel()
    assert taken.added is not None
    assert taken.added > 80 * MB


@on_linux
def test_what_fails_is_watched_to_its_end() -> None:
    with pytest.raises(ValueError, match="full"), memory_taken(CPU) as taken:
        raise ValueError("full")
    assert taken.added is not None


def test_where_nothing_tells_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "anonymous_bytes", lambda: None)
    with memory_taken(CPU) as taken:
        pass
    assert taken.added is None


@on_linux
def test_anonymous_memory_is_part_of_the_highest_use() -> None:
    assert 0 < (anonymous_bytes() or 0) <= peak_memory_bytes(CPU)
