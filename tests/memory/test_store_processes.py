"""MemoryStore among processes: killed while they write, two that make one memory, readers beside one that evicts."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infinipot_llm.memory.store import MemoryStore

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and fork")

# What every process below begins with. A memory is random bytes and their SHA-256: any part of it shows that it is one.
COMMON = """
import faulthandler, hashlib, itertools, os, random, signal, sys, time
from pathlib import Path
from infinipot_llm.memory.store import MemoryStore

faulthandler.dump_traceback_later(100, exit=True)  # the disk may be slow; what hangs says where
folder, number = Path(sys.argv[1]), int(sys.argv[2])
keys = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(6)]
rng = random.Random(number)

def say(word):
    print(word, flush=True)

def write(path, nbytes):
    body = rng.randbytes(nbytes - 32)
    body += hashlib.sha256(body).digest()
    with path.open("xb") as out:
        for start in range(0, len(body), nbytes // 4):
            out.write(body[start : start + nbytes // 4])
            out.flush()
            os.fsync(out.fileno())
"""

KILLED = """
def work():
    store = MemoryStore(folder, max_bytes=3 * 64_000)
    for turn in itertools.count():
        key = rng.choice(keys)
        with store.writing(key):
            store.get(key)  # and made again, so that renames over a memory are cut as well
            scratch = store.scratch(key)
            write(scratch, 64_000)
            store.put(key, scratch, {"turn": turn})

left = 0
for kill in range(50):
    rng.seed(kill)
    child = os.fork()
    if not child:
        work()
    time.sleep(rng.uniform(0.005, 0.05))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended on its own, by an error"
    for path in folder.glob("*.infinipot"):
        body = path.read_bytes()
        assert hashlib.sha256(body[:-32]).digest() == body[-32:], f"half a memory after kill {kill}"
    left += any(".part" in path.name for path in folder.glob("*"))
say(left)
"""

HOLD = """
with MemoryStore(folder).writing(keys[0]):
    MemoryStore(folder).scratch(keys[0]).touch() if number else None
    say("held")
    time.sleep(60)
"""

WAIT = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
try:
    with MemoryStore(folder).writing(keys[0], on_wait=lambda: say("waiting")):
        say("got it")
except KeyboardInterrupt:
    say("interrupted")
"""

MAKE_ONCE = """
store = MemoryStore(folder)
waits = folder.parent / "somebody waits"
with store.writing(keys[0], on_wait=waits.touch):
    if store.get(keys[0]) is None:
        say("makes it")
        limit = time.monotonic() + 5
        while not waits.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        scratch = store.scratch(keys[0])
        write(scratch, 1000)
        store.put(keys[0], scratch, {})
    else:
        say("found it")
"""

READ = """
store, found = MemoryStore(folder), [0, 0]
limit = time.monotonic() + 3
while time.monotonic() < limit:
    key = rng.choice(keys)
    if number % 2:
        handle = store.open(key)
    else:
        path = store.get(key)
        try:
            handle = path.open("rb") if path else None
        except FileNotFoundError:
            handle = None
    if handle:
        with handle:
            body = handle.read(10_000)
            time.sleep(0.002)  # time to be evicted in
            body += handle.read()
        assert len(body) == 64_000 and hashlib.sha256(body[:-32]).digest() == body[-32:], "half a memory"
    found[handle is not None] += 1
    if rng.random() < 0.05:
        assert store.total_bytes() <= 3 * 64_000
        store.list()
say(found)
"""

EVICT = """
store, count = MemoryStore(folder, max_bytes=3 * 64_000), 0
limit = time.monotonic() + 3
while time.monotonic() < limit:
    key = rng.choice(keys)
    scratch = store.scratch(key)
    write(scratch, 64_000)
    store.put(key, scratch, {"count": count})
    count += 1
say(count)
"""

KEY = hashlib.sha256(b"0").hexdigest()


class Started:
    """Processes, and the end of those that a failed test leaves behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[subprocess.Popen[str]] = []

    def __call__(self, script: str, number: int = 0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", COMMON + script, str(self.folder), str(number)]
        self.all.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return self.all[-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path / "store")
    yield started
    for process in started.all:
        process.kill()
        process.communicate()


def ends_with(process: subprocess.Popen[str], within: float = 120) -> str:
    words, _ = process.communicate(timeout=within)
    assert process.returncode == 0
    return words.strip()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def only_memories(folder: Path) -> bool:
    return {path.suffix for path in folder.iterdir() if path.name != ".lock"} <= {".infinipot", ".json"}


@pytest.mark.parametrize("cleaner", ["list", "put"])
def test_fifty_kills_leave_whole_memories_and_no_garbage(start: Started, cleaner: str) -> None:
    start.folder.mkdir(mode=0o700)
    left = int(ends_with(start(KILLED, 1)))
    assert left > 0, "no kill hit a writer: the test shows nothing"
    store = MemoryStore(start.folder, max_bytes=3 * 64_000)
    if cleaner == "list":
        assert store.list()
    else:
        scratch = store.scratch(KEY)
        scratch.write_bytes(b"x")
        store.put(KEY, scratch, {})
    assert only_memories(start.folder), sorted(path.name for path in start.folder.iterdir())
    assert store.total_bytes() <= 3 * 64_000
    assert all(entry.description for entry in store.list() if entry.nbytes > 1)


def test_lock_of_a_killed_process_is_free(start: Started) -> None:
    holder = start(HOLD, 1)
    assert says(holder) == "held"
    waiter = start(WAIT)
    assert says(waiter) == "waiting"
    holder.kill()
    assert ends_with(waiter) == "got it"
    assert MemoryStore(start.folder).list() == []
    assert only_memories(start.folder)


def test_waiting_can_be_interrupted(start: Started) -> None:
    holder, waiter = start(HOLD), start(WAIT)
    assert says(holder) == "held"
    word = says(waiter)
    if word == "got it":  # it came first
        waiter = start(WAIT)
        word = says(waiter)
    assert word == "waiting"
    time.sleep(0.1)
    waiter.send_signal(signal.SIGINT)
    assert ends_with(waiter) == "interrupted"
    assert MemoryStore(start.folder).list() == []
    assert (start.folder / f"{KEY}.lock").exists(), "the lock of a living process was cleaned away"


def test_two_writers_do_the_work_once(start: Started) -> None:
    words = sorted(ends_with(process) for process in [start(MAKE_ONCE, 1), start(MAKE_ONCE, 2)])
    assert words == ["found it", "makes it"]
    assert only_memories(start.folder)


def test_readers_beside_one_that_evicts(start: Started) -> None:
    start.folder.mkdir(mode=0o700)
    readers = [start(READ, 1), start(READ, 2)]
    assert int(ends_with(start(EVICT, 3))) > 5
    for reader in readers:
        absent, there = ends_with(reader).strip("[]").split(", ")
        assert int(absent) > 0
        assert int(there) > 0
    MemoryStore(start.folder).list()
    assert only_memories(start.folder)
