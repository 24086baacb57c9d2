"""Waiting for an answer: piece by piece, or without blocking an event loop. The decoding itself runs in a thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
Ask = Callable[..., T]
"""What answers: called with `cancelled` (asked whether to stop) and, for pieces, `on_text` (given each of them)."""


def pieces(ask: Ask[Any]) -> Iterator[str]:
    """Yield an answer piece by piece; an error there is raised here, and leaving the loop ends the decoding."""
    said: queue.Queue[str | BaseException | None] = queue.Queue()
    gone = threading.Event()

    def work() -> None:
        try:
            ask(on_text=said.put, cancelled=gone.is_set)
            said.put(None)
        except BaseException as error:  # it must reach the caller, whatever it is
            said.put(error)

    worker = threading.Thread(target=work, name="infinipot-answer", daemon=True)
    worker.start()
    try:
        while (piece := said.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        gone.set()
        worker.join()


async def awaited(ask: Ask[T]) -> T:
    """Wait for an answer; cancelling the task ends the decoding."""
    gone = threading.Event()
    try:
        return await asyncio.to_thread(ask, cancelled=gone.is_set)
    finally:
        gone.set()


async def awaited_pieces(ask: Ask[Any]) -> AsyncIterator[str]:
    """Yield an answer piece by piece; leaving the loop ends the decoding."""
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[str | None] = asyncio.Queue()

    def put(piece: str | None) -> None:
        loop.call_soon_threadsafe(said.put_nowait, piece)

    task = asyncio.create_task(awaited(lambda cancelled: ask(on_text=put, cancelled=cancelled)))
    task.add_done_callback(lambda _: said.put_nowait(None))
    try:
        while (piece := await said.get()) is not None:
            yield piece
        await task
    finally:
        task.cancel()
