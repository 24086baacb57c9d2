"""What a parser may do in its process, and what is left of the document then."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pdf_samples import bomb, in_child, make_pdf

from infinipot_llm.documents import Document, frames, pdf, pdfium, process, worker
from infinipot_llm.documents.limits import Limits
from infinipot_llm.documents.page_notes import page_list
from infinipot_llm.errors import DocumentError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space as on Linux")


def set_limits(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    monkeypatch.setattr(pdf, "LIMITS", replace(Limits(), **limits))  # type: ignore[arg-type]


def on_page(monkeypatch: pytest.MonkeyPatch, number: int, code: str, reader: str = "pypdf") -> None:
    """Have a statement run in the parsing process before a page, counted from 1, is read."""
    target = "pypdf_pages" if reader == "pypdf" else "pdfium"
    name = "pypdf.PageObject.extract_text" if reader == "pypdf" else "pdfium._page_text"
    index = "args[0].page_number" if reader == "pypdf" else "args[1]"
    in_child(
        monkeypatch,
        f"""
import os, signal, stat, time, pypdf
from infinipot_llm.documents import {target}
def is_pipe(fd):
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False
def wrap(original):
    def wrapped(*args, **kwargs):
        if {index} == {number - 1}:
            {code}
        return original(*args, **kwargs)
    return wrapped
{name} = wrap({name})
""",
    )


def page_texts(document: Document) -> list[str]:
    return [document.text[page.start : page.end].strip() for page in document.pages]


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "documents.worker" in " ".join(child.cmdline())]


@pytest.fixture(autouse=True)
def no_child_is_left() -> object:
    yield
    assert not psutil.Process().children(recursive=True)


FATAL = [
    ("os.kill(os.getpid(), signal.SIGSEGV)", r"it crashed \(SIGSEGV\)"),
    ("os.abort()", r"it crashed \(SIGABRT\)"),
    ("os._exit(3)", r"it ended without an answer \(exit status 3\)"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "it was killed by the system"),
    ("time.sleep(60)", "it took too long"),
    ("while True: pass", "it took too long"),
    (
        "[os.write(fd, bytes(64)) for fd in range(3, 12) if os.path.exists(f'/proc/self/fd/{fd}')]; time.sleep(9)",
        "it .+",
    ),
]


@POSIX
@pytest.mark.parametrize(("code", "reason"), FATAL)
def test_a_parser_that_dies_costs_one_page(code: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdfium, "is_installed", lambda: False)
    set_limits(monkeypatch, page_seconds=2.0)
    on_page(monkeypatch, 2, code)
    document = Document.from_bytes(make_pdf("one", "two", "three", "four"), name="-")
    assert page_texts(document) == ["one", "", "three", "four"]
    (note,) = document.notes
    assert note.startswith("page 2: lost because pypdf failed (it ")
    assert re.search(reason, note)


@POSIX
def test_the_lost_page_is_read_with_pypdfium2(monkeypatch: pytest.MonkeyPatch) -> None:
    on_page(monkeypatch, 2, "os.abort()")
    document = Document.from_bytes(make_pdf("one", "two", "three"), name="-")
    assert page_texts(document) == ["one", "two", "three"]
    assert document.notes == ("page 2: read with pypdfium2 because pypdf failed (it crashed (SIGABRT))",)


@POSIX
def test_when_both_readers_die(monkeypatch: pytest.MonkeyPatch) -> None:
    on_page(monkeypatch, 2, "os.abort()")
    on_page(monkeypatch, 2, "os._exit(1)", reader="pypdfium2")
    document = Document.from_bytes(make_pdf("one", "two", "three"), name="-")
    assert page_texts(document) == ["one", "", "three"]
    (note,) = document.notes
    assert "it crashed (SIGABRT)) and so did pypdfium2 (it ended without an answer (exit status 1))" in note


@POSIX
def test_a_parser_that_dies_of_every_page_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdfium, "is_installed", lambda: False)
    set_limits(monkeypatch, restarts=2)
    for number in range(2, 9):
        on_page(monkeypatch, number, "os.abort()")
    started = []
    start = process.Process._start
    monkeypatch.setattr(process.Process, "_start", lambda self: started.append(1) or start(self))
    document = Document.from_bytes(make_pdf("one", *["more"] * 8), name="-")
    assert page_texts(document) == ["one", *[""] * 8]
    assert document.notes[0].startswith("pages 2 to 9: lost because pypdf failed (it crashed (SIGABRT))")
    assert len(started) == 3


@POSIX
def test_a_parser_that_dies_before_the_first_page(monkeypatch: pytest.MonkeyPatch) -> None:
    in_child(monkeypatch, "import os, pypdf\ndef die(*a, **k): os.abort()\npypdf.PdfReader.__init__ = die")
    document = Document.from_bytes(make_pdf("one", "two"), name="-")
    assert page_texts(document) == ["one", "two"]
    assert document.notes == ("read with pypdfium2 because pypdf failed (it crashed (SIGABRT))",)
    monkeypatch.setattr(pdfium, "is_installed", lambda: False)
    with pytest.raises(DocumentError, match=r"cannot be read as a PDF.*pypdf failed \(it crashed \(SIGABRT\)\)\)\.$"):
        Document.from_bytes(make_pdf("one", "two"), name="-")


@POSIX
def test_a_parser_that_dies_of_the_labels_costs_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    in_child(monkeypatch, "import os\nfrom infinipot_llm.documents import pypdf_pages")
    in_child(monkeypatch, "pypdf_pages.page_labels = lambda root, count: os.abort()")
    document = Document.from_bytes(make_pdf("one", "two"), name="-")
    assert page_texts(document) == ["one", "two"]
    assert document.notes == ("the printed page numbers could not be read (it crashed (SIGABRT))",)


def test_the_whole_file_has_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdfium, "is_installed", lambda: False)
    set_limits(monkeypatch, total_seconds=6.0, seconds_per_page=0.0, restarts=1)
    in_child(
        monkeypatch,
        "import time, pypdf\npypdf.PageObject.extract_text = lambda page, **kwargs: time.sleep(0.3) or 'text'",
    )
    begun = time.monotonic()
    document = Document.from_bytes(make_pdf(*["text"] * 100), name="-")
    assert time.monotonic() - begun < 25  # 100 pages take 30
    read = [text for text in page_texts(document) if text]
    assert 1 <= len(read) <= 21
    assert document.notes[0].endswith("may read it")
    assert "it took too long" in document.notes[0]


def test_a_child_that_does_not_take_its_data_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdfium, "is_installed", lambda: False)
    set_limits(monkeypatch, open_seconds=1.0, seconds_per_mib=0.01)
    in_child(
        monkeypatch,
        "import time\nfrom infinipot_llm.documents import worker\nworker._receive = lambda *a: time.sleep(60)",
    )
    with pytest.raises(DocumentError, match="it took too long"):
        Document.from_bytes(make_pdf("one") + bytes(20_000_000), name="-")


@LINUX
def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdfium, "is_installed", lambda: False)
    set_limits(monkeypatch, memory=400 * 2**20)
    on_page(monkeypatch, 2, "bytearray(500 * 2**20)")
    document = Document.from_bytes(make_pdf("one", "two", "three"), name="-")
    assert page_texts(document) == ["one", "", "three"]
    assert document.notes[0].startswith("page 2: lost because pypdf failed (MemoryError)")


def test_memory_is_watched_where_the_system_does_not_limit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdfium, "is_installed", lambda: False)
    set_limits(monkeypatch, memory=200 * 2**20)
    in_child(monkeypatch, "from infinipot_llm.documents import worker\nworker._limit = lambda *a: False")
    on_page(monkeypatch, 2, "keep = bytearray(b'x') * (300 * 2**20); time.sleep(9)")
    document = Document.from_bytes(make_pdf("one", "two", "three"), name="-")
    assert page_texts(document) == ["one", "", "three"]
    assert document.notes[0].startswith("page 2: lost because pypdf failed (it took too much memory)")


def test_a_bomb_is_refused_within_the_memory() -> None:
    data = bomb(200)
    assert len(data) < 20_000
    begun = time.monotonic()
    with pytest.raises(DocumentError, match=r"^b\.pdf "):
        Document.from_bytes(data, name="b.pdf")
    assert time.monotonic() - begun < 30


def test_long_pages_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, page_characters=10, characters=25)
    document = Document.from_bytes(make_pdf("a" * 30, "b" * 9, "c" * 30, "d", ""), name="-")
    assert page_texts(document) == ["a" * 10, "b" * 9, "c" * 5, "", ""]
    assert document.notes == (
        "page 1: cut after 10 characters, since no page of writing is longer",
        "page 3: cut after 5 characters, since no page of writing is longer",
        "page 4: left out, since the pages before hold more text than is kept of a PDF",
        "page 5 holds no text: it may be a scan, which needs OCR first, for instance with ocrmypdf, or blank",
    )


def test_a_page_tree_that_claims_too_much_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdfium, "is_installed", lambda: False)
    in_child(
        monkeypatch,
        "from infinipot_llm.documents import worker\n"
        "from itertools import chain, repeat\n"
        "worker.READERS['pypdf'] = lambda *a: chain([{'kind': 'opened', 'pages': 10**9}], repeat({'kind': 'no idea'}))",
    )  # it never ends, and nobody waits for it
    with pytest.raises(DocumentError, match="it found 1000000000 pages"):
        Document.from_bytes(make_pdf("one"), name="-")


def test_the_current_folder_is_not_searched_for_packages(tmp_path: Path) -> None:
    (tmp_path / "pypdf.py").write_text("raise SystemExit('hijacked')", encoding="utf-8")
    (tmp_path / "a.pdf").write_bytes(make_pdf("text"))
    script = Path(sys.executable).parent / "infinipot"
    code = (
        "import sys; sys.path[:] = sys.argv[1:]\nfrom infinipot_llm import Document\nprint(Document.from_file('a.pdf'))"
    )
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", code, *path], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Document(name='a.pdf'" in done.stdout, done.stderr + str(script)


@pytest.mark.parametrize("executable", ["", "/no/such/python"])
def test_without_an_interpreter(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(DocumentError) as raised:
        Document.from_bytes(make_pdf("one"), name="x.pdf")
    assert str(raised.value).startswith("x.pdf cannot be read, since PDFs are parsed in a Python process of their own")
    assert str(raised.value).endswith("run it with an ordinary Python, or convert the PDF to text first.")


def test_a_frozen_program_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started"))
    with pytest.raises(DocumentError, match="packed without a Python interpreter"):
        Document.from_bytes(make_pdf("one"), name="x.pdf")


@POSIX
def test_an_executable_that_is_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(DocumentError, match=r"/bin/true does not run as one, it ended without an answer"):
        Document.from_bytes(make_pdf("one"), name="x.pdf")


def test_an_interrupt_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    on_page(monkeypatch, 1, "time.sleep(60)")
    alive = []

    def interrupt() -> None:
        while not children():
            time.sleep(0.05)
        time.sleep(0.5)
        alive.extend(children())
        signal.raise_signal(signal.SIGINT)

    # A shell that runs the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            Document.from_bytes(make_pdf("one"), name="-")
    finally:
        signal.signal(signal.SIGINT, before)
    assert alive
    assert not children()


@POSIX
def test_ctrl_c_for_the_group_does_not_end_the_child_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    on_page(monkeypatch, 2, "os.kill(os.getpid(), signal.SIGINT)")
    assert page_texts(Document.from_bytes(make_pdf("one", "two"), name="-")) == ["one", "two"]


@POSIX
def test_no_orphan_is_left_when_the_process_is_killed() -> None:
    code = """
import sys
from infinipot_llm.documents import process
from infinipot_llm.documents.limits import Limits
child = process.Process(Limits())._start()
print(child.process.pid, flush=True)
sys.stdin.read()
"""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        gone, _ = psutil.wait_procs([orphan], timeout=10)
        assert gone or orphan.status() == psutil.STATUS_ZOMBIE  # reaped by whoever adopted it


def test_several_threads_read_at_once() -> None:
    texts: dict[int, list[str]] = {}

    def read(number: int) -> None:
        texts[number] = page_texts(Document.from_bytes(make_pdf(f"file {number}", "more"), name="-"))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: [f"file {number}", "more"] for number in range(6)}


def test_nothing_large_is_imported_to_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    in_child(
        monkeypatch,
        "import sys\nfrom infinipot_llm.documents import worker\n"
        "def read(*a):\n    yield {'kind': 'opened', 'pages': 1}\n"
        "    yield {'kind': 'page', 'index': 0, 'text': ' '.join(sys.modules), 'characters': 0}\n"
        "worker.READERS['pypdf'] = read",
    )
    modules = set(page_texts(Document.from_bytes(make_pdf("one"), name="-"))[0].split())
    assert "infinipot_llm.documents.worker" in modules
    assert not modules & {"torch", "numpy", "transformers", "pypdfium2", "click"}


def test_messages_come_through_and_nonsense_does_not() -> None:
    stream = io.BytesIO()
    message = {"kind": "page", "text": "lone \ud800, \u0000 and \U0001f600"}
    frames.write(stream, message)
    frames.write(stream, {})
    assert stream.getvalue().isascii()
    stream.seek(0)
    assert [frames.read(stream) for _ in range(3)] == [message, {}, None]
    for nonsense in (b"\0", b"\0\0\0\x09{}", b"\xff\xff\xff\xff{}", b"\0\0\0\x02[]", b"\0\0\0\x02xx"):
        with pytest.raises(ValueError):  # noqa: PT011
            frames.read(io.BytesIO(nonsense))
    assert 12 * Limits().page_characters < frames.MAX_BYTES
    assert set(worker.READERS) == {"pypdf", "pypdfium2"}


def test_page_lists() -> None:
    assert page_list([2]) == "page 3"
    assert page_list([4, 2, 3]) == "pages 3 to 5"
    assert page_list([0, 2, 4, 5]) == "pages 1, 3 and 5 to 6"
    assert page_list(range(0, 60, 2)).endswith("21, 23 and 18 more")
