"""Real memories in one store: two processes read, two answer, one evicts, all at once; no error, and no half memory.

INFINIPOT_SHARED_SECONDS says for how long (60 for the full test).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from infinipot_llm.memory.store import MemoryStore

SECONDS = int(os.environ.get("INFINIPOT_SHARED_SECONDS", "8"))
WORK = """
import faulthandler, json, random, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from conftest import byte_tokenizer, tiny_model
from infinipot_llm import Document, InfiniPot, MemoryStore, PotConfig
from infinipot_llm.errors import MemoryFileError
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

role, folder, gate, seconds = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
faulthandler.dump_traceback_later(seconds + 200, exit=True)
rng = random.Random(role)
config = PotConfig(budget=300, max_new_tokens=8, question_tokens=32, chunk=64, recall=80)
llm = InfiniPot(Adapter(tiny_model("llama")), TextCodec(byte_tokenizer()), config)
texts = ["\\n\\n".join(f"Mill {i} of {n} burned." for i in range(40)) for n in range(5)]
documents = [Document.from_text(text, name=f"d{n}") for n, text in enumerate(texts)]
store = MemoryStore(folder, max_bytes=3.5 * 300_000)
said, turns, missed = {}, 0, 0
print("ready", flush=True)
while not gate.exists():
    time.sleep(0.01)
limit = time.monotonic() + seconds
while time.monotonic() < limit:
    n = rng.randrange(5)
    key = llm.key([documents[n]])
    if role.startswith("evict"):
        store.remove(key) if rng.random() < 0.9 else store.clear()
        time.sleep(0.2)
    elif role.startswith("read"):
        llm.read(documents[n], store=store)
    else:
        path = store.get(key)
        if path is None:
            missed += 1
            time.sleep(0.01)
            continue
        try:
            memory = llm.load(path)
        except MemoryFileError as error:
            if "No such file" not in str(error):
                raise  # evicted between the two is no error; damaged is one
            missed += 1
            continue
        time.sleep(rng.uniform(0, 0.05))  # it may be evicted now, and is answered from all the same
        answer = memory.ask("Which mill?", citations=False)
        assert memory.documents[0].content_hash == documents[n].content_hash
        said.setdefault(n, set()).add(answer.text)
    turns += 1
print(json.dumps({"turns": turns, "missed": missed, "said": {n: sorted(s) for n, s in said.items()}}), flush=True)
"""


@pytest.mark.timeout(600)
def test_readers_askers_and_an_evictor_share_a_store(tmp_path: Path) -> None:
    gate, folder = tmp_path / "go", tmp_path / "store"
    roles = ["read 1", "read 2", "ask 1", "ask 2", "evict"]
    tests = str(Path(__file__).resolve().parents[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, role, str(folder), str(gate), str(SECONDS), tests],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for role in roles
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == "ready\n", process.stderr.read() if process.stderr else line
        gate.touch()
        done = [process.communicate(timeout=SECONDS + 240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for role, process, (_, errors) in zip(roles, processes, done, strict=True):
        assert process.returncode == 0, f"{role}: {errors}"
    found = {role: json.loads(out) for role, (out, _) in zip(roles, done, strict=True)}
    assert all(found[role]["turns"] > 0 for role in roles), found
    answers: dict[str, set[str]] = defaultdict(set)
    for role in ("ask 1", "ask 2"):
        for number, texts in found[role]["said"].items():
            answers[number] |= set(texts)
    assert answers
    assert all(len(texts) == 1 for texts in answers.values())  # whoever read it, and whenever
    store = MemoryStore(folder)
    assert all(store.get(entry.key) for entry in store.list())
    assert not [p for p in folder.rglob("*") if ".part" in p.name]
