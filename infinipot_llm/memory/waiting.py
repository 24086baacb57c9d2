"""Waiting for an answer: piece by piece, or without blocking an event loop. The decoding itself runs in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from infinipot_llm.errors import GoneError

_ANSWERING = ThreadPoolExecutor(64, thread_name_prefix="infinipot-answer")
"""Where answers are waited for: in an event loop's own executor they would stand before its look-ups of names."""

T = TypeVar("T")
Ask = Callable[..., T]
"""What answers: called with `cancelled` (asked whether to stop) and, for pieces, `on_text` (given each of them)."""


@dataclass(frozen=True, slots=True)
class _End(Generic[T]):
    """How an answer ended: with its value, or an error."""

    value: T | None = None
    error: BaseException | None = None


def overheard(ask: Ask[T], options: dict[str, Any]) -> Ask[T]:
    """Return `ask` with options, of which `cancelled` and `on_text` count beside those of whoever waits here."""
    own, told = options.get("cancelled"), options.get("on_text")

    def heard(cancelled: Callable[[], bool], on_text: Callable[[str], None] | None = None) -> T:
        listeners = [listener for listener in (on_text, told) if listener is not None]

        def each(piece: str) -> None:
            for listener in listeners:
                listener(piece)

        def nobody_waits() -> bool:
            return cancelled() or (own is not None and own())

        return ask(**{**options, "cancelled": nobody_waits, "on_text": each if listeners else None})

    return heard


def pieces_and_value(ask: Ask[T]) -> Iterator[str | T]:
    """Yield an answer piece by piece, and last what `ask` returned.

    An error there is raised here, and leaving the loop ends the decoding.
    """
    said: queue.Queue[str | _End[T]] = queue.Queue()
    gone = threading.Event()

    def work() -> None:
        try:
            said.put(_End(ask(on_text=said.put, cancelled=gone.is_set)))
        except BaseException as error:  # it must reach the caller, whatever it is
            said.put(_End(error=error))

    worker = threading.Thread(target=work, name="infinipot-answer", daemon=True)
    worker.start()
    try:
        while isinstance(piece := said.get(), str):
            yield piece
        if piece.error is not None:
            raise piece.error
        yield piece.value  # type: ignore[misc]
    finally:
        gone.set()
        worker.join()


def pieces(ask: Ask[Any]) -> Iterator[str]:
    """Yield an answer piece by piece; an error there is raised here, and leaving the loop ends the decoding."""
    both = pieces_and_value(ask)
    try:
        for piece in both:
            if isinstance(piece, str):
                yield piece
    finally:
        both.close()  # type: ignore[attr-defined]


async def awaited(ask: Ask[T]) -> T:
    """Wait for an answer; cancelling the task ends the decoding."""
    gone = threading.Event()
    context = contextvars.copy_context()
    try:
        return await asyncio.get_running_loop().run_in_executor(
            _ANSWERING, partial(context.run, partial(ask, cancelled=gone.is_set))
        )
    finally:
        gone.set()


async def awaited_pieces_and_value(ask: Ask[T]) -> AsyncIterator[str | T]:
    """Yield an answer piece by piece, and last what `ask` returned; leaving the loop ends the decoding."""
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[str | None] = asyncio.Queue()

    def put(piece: str | None) -> None:
        loop.call_soon_threadsafe(said.put_nowait, piece)

    task = asyncio.create_task(awaited(lambda cancelled: ask(on_text=put, cancelled=cancelled)))
    task.add_done_callback(lambda _: said.put_nowait(None))
    try:
        while (piece := await said.get()) is not None:
            yield piece
        yield await task
    finally:
        task.cancel()


async def awaited_pieces(ask: Ask[Any]) -> AsyncIterator[str]:
    """Yield an answer piece by piece; leaving the loop ends the decoding."""
    both = awaited_pieces_and_value(ask)
    try:
        async for piece in both:
            if isinstance(piece, str):
                yield piece
    finally:
        await both.aclose()  # type: ignore[attr-defined]


@contextmanager
def held(lock: Any, cancelled: Callable[[], bool] | None) -> Iterator[None]:
    """Hold a lock; whoever has gone away does not wait for it.

    Raises:
        GoneError: `cancelled` said so.
    """
    while not lock.acquire(timeout=0.1):
        if cancelled is not None and cancelled():
            raise GoneError
    try:
        yield
    finally:
        lock.release()


class Pieces:
    """Joins the pieces of an answer so that, at every moment, they are a beginning of the whole answer's text.

    An answer has no white space around it, while its pieces come as they are decoded.
    """

    def __init__(self) -> None:
        self.text = ""
        self._held = ""

    def add(self, piece: str) -> str:
        """Return what a piece adds; white space waits for what follows it."""
        piece = self._held + piece
        if not self.text:
            piece = piece.lstrip()
        added = piece.rstrip()
        self._held = piece[len(added) :]
        self.text += added
        return added

    def end(self, whole: str) -> str:
        """Return what is missing of the whole answer."""
        added = whole[len(self.text) :] if whole.startswith(self.text) else ""
        self.text += added
        return added
