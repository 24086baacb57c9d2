"""The process that parses PDFs: it reads requests on its standard input and answers page by page on its output.

It is started by `process.Process` and imports the PDF reader it is asked for, and nothing else that is large. What can
be set from inside is set here: its memory, its processor time, and that it ends when the process that started it does.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from infinipot_llm.documents import frames, pdfium, pypdf_pages
from infinipot_llm.documents.clean import describe

Reader = Callable[[bytes, "str | None", "Sequence[int] | None", int], "Iterator[dict[str, Any]]"]

READERS: dict[str, Reader] = {"pypdf": pypdf_pages.read, "pypdfium2": pdfium.read}
"""What a request may ask for. A reader gives, in this order: `locked` (and nothing more) if the password is missing or
wrong; `opened` with the number of pages; for every page `page` with its text, or `lost` with the reason; `labels`. When
it raises instead, `failed` with the reason is sent; `done` follows always."""


def main() -> None:
    """Answer requests until the standard input ends."""
    # Ctrl-C reaches the whole process group; whoever started this one decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)  # pypdf's remarks may quote the document
    answers = os.fdopen(os.dup(1), "wb")
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)  # whatever a library prints must not come between the messages
    requests: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    frames.write(answers, {"kind": "hello"})
    while True:
        request, data = requests.get()
        try:
            frames.write(answers, {"kind": "ready", "is_limited": _limit(request["memory"], request["seconds"])})
            reader = READERS[request["reader"]]
            for message in reader(data, request["password"], request["indexes"], request["characters"]):
                frames.write(answers, message)
        except BrokenPipeError:
            os._exit(0)
        except BaseException as error:  # MemoryError and what derives from BaseException alone are reported as well
            frames.write(answers, {"kind": "failed", "reason": describe(error)})
        del data
        frames.write(answers, {"kind": "done"})


def _receive(stream: BinaryIO, requests: queue.SimpleQueue[tuple[dict[str, Any], bytes]]) -> None:
    """Queue requests; end the whole process at the end of the stream, which the other side's death brings about."""
    try:
        while (request := frames.read(stream)) is not None:
            requests.put((request, stream.read(request["size"])))
    finally:
        os._exit(0)


def _limit(memory: int, seconds: int) -> bool:
    """Limit this process, and tell whether its memory is limited in truth.

    The address space can be limited on Linux and most Unixes; macOS accepts the limit and does not keep it, Windows
    has none. The limit on processor time only matters when nobody is left to end a parser that hangs.
    """
    try:
        import resource
    except ImportError:
        return False
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = {
        resource.RLIMIT_CORE: 0,  # a core file would hold the document
        resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + seconds,
        resource.RLIMIT_AS: memory,
    }
    is_limited = sys.platform != "darwin"
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        try:
            resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
        except (OSError, ValueError):
            is_limited = is_limited and kind != resource.RLIMIT_AS
    return is_limited
