"""A process of its own for parsing PDFs: what a parser of hostile data does there, it does not do to ours.

A crash, a hang or a blow-up of memory ends that process and is told as `ParserDiedError`, with the pages that came
before it already delivered.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO

from infinipot_llm.documents import frames
from infinipot_llm.documents.clean import one_line
from infinipot_llm.documents.limits import Limits

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);from infinipot_llm.documents.worker import main; main()"
)

_GRACE = 60
"""Seconds of processor time that a parser nobody waits for any more may use beyond its wall-clock limit."""

_POLL = 0.2
"""Seconds between two looks at a parser's memory, and at signals: on Windows, Ctrl-C does not interrupt waiting."""


def _import_path() -> list[str]:
    """Return where the child finds packages: where this process does, in the same order.

    The current folder is left out, as isolated mode (-I) does: it may be the one that a hostile PDF was downloaded to,
    with a pypdf.py beside it. Where this package itself stands there, it comes last.
    """
    here = os.getcwd()  # noqa: PTH109 - compared with strings
    found = [path for path in map(os.path.abspath, sys.path) if path != here]
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    return found if own in found else [*found, own]


class ParserDiedError(Exception):
    """The parser crashed, hung, or took too much memory; the message says which."""


class ParserMissingError(Exception):
    """No process can be started to parse in; the message says why."""


class _Child:
    """A running child, the threads that talk with it, and its messages: None is the last one."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(  # noqa: S603 (our own interpreter with our own code)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self.messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._run(_receive, self.process.stdout, self.messages)

    def send(self, request: dict[str, Any], data: bytes) -> None:
        """Begin to hand a request and its data to the child: a child that hangs does not take them."""
        self._run(_send, self.process.stdin, request, data)

    def _run(self, target: Any, *arguments: Any) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def resident(self) -> int:
        """Return the bytes of memory that the child holds."""
        import psutil

        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def end(self) -> None:
        """Kill the child, whatever it is doing, and wait until it and the threads are gone."""
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was still to be written finds no reader
                if stream is not None:
                    stream.close()


class Process:
    """A child process, started when it is first needed, and again after it died; a context manager that ends it.

    One thread at a time may use it; threads that read PDFs at once have one each.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._child: _Child | None = None

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if there is one; the next reading starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def read(
        self, data: bytes, reader: str, *, password: str | None, indexes: Sequence[int] | None, begun: float
    ) -> Iterator[dict[str, Any]]:
        """Have a PDF read, and give the messages as they come; see `worker.READERS`.

        Args:
            data: The content of the PDF.
            reader: One of `worker.READERS`.
            password: Its password, or None.
            indexes: The pages to read, from 0, or None for all.
            begun: When the reading of this PDF began (`time.monotonic`); restarts share its time.

        Raises:
            ParserDiedError: If the child died or had to be ended; the messages given before that hold.
            ParserMissingError: If no child can be started.
        """
        limits = self.limits
        child = self._child or self._start()
        growth = limits.seconds_per_mib * len(data) / 2**20
        memory = limits.memory + len(data)
        request = {
            "reader": reader,
            "password": password,
            "indexes": None if indexes is None else list(indexes),
            "size": len(data),
            "memory": memory,
            "seconds": int(limits.most_seconds) + _GRACE,
            "characters": limits.page_characters,
        }
        child.send(request, data)
        allowed, total, watched = limits.open_seconds + growth, limits.most_seconds, None
        while True:
            message = self._next(child, min(allowed, begun + total - time.monotonic()), watched)
            kind = message.get("kind")
            if kind == "done":
                return
            if kind == "ready":
                watched = None if message.get("is_limited") else memory
                continue
            if kind == "opened" and isinstance(message.get("pages"), int):
                grown = limits.total_seconds + growth + limits.seconds_per_page * message["pages"]
                allowed, total = limits.page_seconds, min(grown, limits.most_seconds)
            yield message

    def _start(self) -> _Child:
        """Start a child and wait for its first word.

        Raises:
            ParserMissingError: If that cannot be done.
        """
        if getattr(sys, "frozen", False) or not sys.executable:
            # A frozen program is its own sys.executable: started again, it would be the program and not Python.
            raise ParserMissingError("this program is packed without a Python interpreter that it could start")
        try:
            child = self._child = _Child([sys.executable, "-I", "-c", _BOOT, json.dumps(_import_path())])
        except (OSError, ValueError) as error:
            raise ParserMissingError(f"{sys.executable} cannot be started: {one_line(str(error))}") from error
        try:
            self._next(child, self.limits.start_seconds, None)
        except ParserDiedError as error:
            raise ParserMissingError(f"{sys.executable} does not run as one, it {error}") from None
        return child

    def _next(self, child: _Child, seconds: float, watched: int | None) -> dict[str, Any]:
        """Wait for the next message.

        Args:
            child: Whose message.
            seconds: How long.
            watched: Bytes of memory that the child must not exceed meanwhile, where the system does not see to that.

        Raises:
            ParserDiedError: If the child dies, says something that is no message, or has to be ended.
        """
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            try:
                message = child.messages.get(timeout=max(0.0, min(left, _POLL)))
            except queue.Empty:
                if left <= 0:
                    self.close()
                    raise ParserDiedError("took too long") from None
                if watched is not None and child.resident() > watched:
                    self.close()
                    raise ParserDiedError("took too much memory") from None
                continue
            if message is None:
                raise ParserDiedError(self._epitaph(child))
            return message

    def _epitaph(self, child: _Child) -> str:
        """Say how a child ended, and clear it away."""
        try:
            code = child.process.wait(timeout=5)  # its output has ended
        except subprocess.TimeoutExpired:
            code = None  # it lives, but what it says is no message
        self.close()
        if code is None:
            return "answered what is no answer"
        if code >= 0:
            return f"ended without an answer (exit status {code})"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return "was killed by the system, perhaps for its memory" if name == "SIGKILL" else f"crashed ({name})"


def _send(stream: BinaryIO, request: dict[str, Any], data: bytes) -> None:
    """Hand a request and its data to the child."""
    with contextlib.suppress(OSError, ValueError):  # a child that died is noticed by its silence
        frames.write(stream, request)
        stream.write(data)
        stream.flush()


def _receive(stream: BinaryIO, answers: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Queue the child's messages, and None after the last one."""
    with contextlib.suppress(OSError, ValueError):
        while (message := frames.read(stream)) is not None:
            answers.put(message)
    answers.put(None)
