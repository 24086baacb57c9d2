"""Saved memories: the same answers in another process, sizes known beforehand, whole after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from saved_samples import CONFIG, KINDS, SPOKEN, Saved, forged, parts_of, python, refusal, said
from saved_samples import adapter as adapter
from saved_samples import saved as saved

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import StoreError
from infinipot_llm.memory import remember, saved_pot
from infinipot_llm.memory.file import MemoryFile
from infinipot_llm.memory.layout import Layout
from infinipot_llm.memory.remember import expected_bytes
from infinipot_llm.memory.saved import write_whole
from infinipot_llm.memory.shelf import ROWS, ShelfWriter
from infinipot_llm.memory.store import MemoryStore

OTHER_PROCESS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import saved_samples as t
from infinipot_llm.models.adapter import Adapter

adapter = Adapter(t.tiny_model("llama"))
codec = t.TextCodec(t.byte_tokenizer())
llm = t.InfiniPot(adapter, codec, t.CONFIG, name="another name")
print(json.dumps({kind: t.said(llm.load(Path(sys.argv[2]) / f"{kind}.infinipot")) for kind in t.KINDS}))
"""


def test_another_process_answers_alike(saved: Saved) -> None:
    folder = saved["int8"][2].parent
    out = subprocess.run(python(OTHER_PROCESS, folder), capture_output=True, text=True, check=False, timeout=100)
    assert out.returncode == 0, out.stderr
    theirs = json.loads(out.stdout)
    for kind, (llm, memory, path) in saved.items():
        assert theirs[kind] == said(llm.load(path)), kind
        if kind != "off":  # there the pot answers, which the packing rounds
            assert theirs[kind] == said(memory), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_comes_back(saved: Saved, kind: str) -> None:
    llm, memory, path = saved[kind]
    back = llm.load(path)
    assert back.documents == memory.documents
    assert [d.content_hash for d in back.documents] == [d.content_hash for d in memory.documents]
    assert back.documents[1].turns == SPOKEN.turns
    assert back.documents[1].notes == SPOKEN.notes
    for name in ("ids", "starts", "ends", "first"):
        ours, theirs = getattr(memory.text, name), getattr(back.text, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert back.stats == memory.stats
    assert back.config == memory.config
    assert back.nbytes == path.stat().st_size
    assert (back.shelved is None) == (kind == "off")
    if memory.shelved is not None and back.shelved is not None:
        R = len(memory.shelved.shelf)
        np.testing.assert_array_equal(back.shelved.shelf.tokens, memory.shelved.shelf.tokens)
        pieces = memory.shelved.shelf.load(0, R) if memory.shelved.shelf.segments[0].layout.whole else ()
        for ours, theirs in zip(pieces, back.shelved.shelf.load(0, R) if pieces else (), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.allclose(memory.shelved.null, back.shelved.null, atol=1e-6, rtol=2e-3)
        assert said(back) == said(memory)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pot_is_rebuilt_up_to_rounding(saved: Saved, kind: str) -> None:
    llm, memory, path = saved[kind]
    assert memory.stats.cycles  # distilled, so heads hold different tokens
    ours, theirs = memory.pot.state(), llm.load(path).pot.state()
    assert torch.equal(ours["origin"], theirs["origin"])
    assert len({tuple(row) for row in ours["origin"].flatten(0, 1).tolist()}) > 1
    assert float(ours["novelty"].max()) > 0
    assert torch.equal(ours["novelty"].half().float(), theirs["novelty"])
    assert memory.pot.pinned == llm.load(path).pot.pinned
    share = 0.13 if kind == "int4" else 0.012
    for name in ("keys", "rotated_keys", "values"):
        # of the largest number of that layer and head: a step is a share of the largest of a vector
        most = ours[name].abs().amax(dim=(2, 3), keepdim=True)
        assert float(((ours[name] - theirs[name]).abs() / most).max()) < share
    prefix = int((ours["origin"][0, 0] < 0).sum())
    assert torch.equal(ours["keys"][:, :, :prefix], theirs["keys"][:, :, :prefix])  # computed, not stored


def test_tokens_of_a_long_text_are_numbered_by_32_bits(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, memory, path = saved["int8"]
    assert parts_of(path)[1]["pot.origin"].dtype == np.uint16
    monkeypatch.setattr(saved_pot, "SHORT", len(memory.text) - 1)
    write_whole(memory, tmp_path / "long")
    about, tensors = parts_of(tmp_path / "long")
    assert tensors["pot.origin"].dtype == np.int32
    ours, theirs = memory.pot.state(), llm.load(tmp_path / "long").pot.state()
    assert torch.equal(ours["origin"], theirs["origin"])
    assert torch.equal(ours["novelty"].half().float(), theirs["novelty"])
    tensors["pot.origin"] = np.where(tensors["pot.origin"] == tensors["pot.origin"].max(), -7, tensors["pot.origin"])
    refusal(llm, forged(tmp_path / "below", about, tensors))
    monkeypatch.undo()
    refusal(llm, tmp_path / "long")  # numbered in another way than a text of its length is


@pytest.mark.parametrize("kind", KINDS)
def test_saving_what_was_loaded_gives_the_same_file_or_the_same_memory(saved: Saved, tmp_path: Path, kind: str) -> None:
    llm, memory, path = saved[kind]
    back = llm.load(path)
    assert back.save(tmp_path / "again").read_bytes() == path.read_bytes()
    renamed = tuple(replace(d, name=f"new {d.name}") for d in memory.documents)
    other = llm.load(back.renamed(renamed).save(tmp_path / "renamed"))
    assert [d.name for d in other.documents] == [d.name for d in renamed]
    assert torch.equal(other.pot.origin, memory.pot.origin)
    if kind != "off":
        called_as_before = other.renamed(memory.documents)  # the model reads the names of several documents
        assert [a[0] for a in said(called_as_before)[::3]] == [a[0] for a in said(memory)[::3]]


@pytest.mark.parametrize("kind", ["int8", "bounded", "extended", "off"])
def test_a_loaded_memory_is_read_on_from(saved: Saved, kind: str, tmp_path: Path) -> None:
    llm, _, path = saved[kind]
    more = llm.extend(llm.load(path), Document.from_text("The pump was mended. " * 10, name="more"))
    again = llm.load(more.save(tmp_path / "more"))
    assert [d.name for d in again.documents][-1] == "more"
    assert again.ask("pump?").text == more.ask("pump?").text


def test_how_to_ask_is_the_askers_choice_and_how_it_was_read_is_the_files(saved: Saved) -> None:
    llm, memory, path = saved["int8"]
    other = InfiniPot(
        llm.adapter,
        llm.form.codec,
        replace(CONFIG, budget=300, kept=0.3, recall=17, followup="reuse", max_new_tokens=5),
    )
    config = other.load(path).config
    assert config == replace(memory.config, recall=17, followup="reuse", max_new_tokens=5)


def test_a_memory_is_not_saved_while_somebody_answers_over_its_pot(saved: Saved, tmp_path: Path) -> None:
    """Without a shelf there is no file yet, and an answer in the making lengthens the pot that is to be written."""
    _, memory, _ = saved["off"]
    target = tmp_path / "late.infinipot"
    saving = threading.Thread(target=memory.save, args=(target,))
    with memory.setup.adapter.lock:
        saving.start()
        saving.join(0.2)
        assert saving.is_alive()
        assert not target.exists()
    saving.join(30)
    assert MemoryFile(target).nbytes == target.stat().st_size


# --- sizes ---


@pytest.mark.parametrize("kind", ["int8", "int4", "keys", "bounded", "keys bounded"])
def test_the_size_is_known_beforehand(saved: Saved, kind: str) -> None:
    llm, memory, path = saved[kind]
    expected = llm.shelf_size(memory.documents)[1]
    actual = path.stat().st_size
    assert expected >= actual
    if kind in ("int8", "int4"):  # otherwise the pot counts, and it is taken to be full
        assert expected <= 1.1 * actual


@pytest.mark.parametrize("kind", ["int8", "int4", "keys", "bounded", "keys bounded"])
def test_the_room_that_writing_needs_is_known_beforehand(
    saved: Saved, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and what is put in order beside it, when both are largest: a disk that has less is refused at once."""
    llm, memory, _ = saved[kind]
    asked, taken = [], 0
    real_close, real_room = ShelfWriter.close, remember.check_room

    def room(folder: Path, needed: int) -> None:
        asked.append(needed)
        real_room(folder, needed)

    def close(writer: ShelfWriter) -> None:
        nonlocal taken
        spans = [s for s in (writer._scoring, writer._rest) if s is not None]
        if not any(s._file.closed for s in spans):
            taken = writer._draft.path.stat().st_size + sum(s._file.seek(0, os.SEEK_END) for s in spans)
        real_close(writer)

    monkeypatch.setattr(ShelfWriter, "close", close)
    monkeypatch.setattr(remember, "check_room", room)
    again = llm.read(memory.documents)
    assert len(asked) == 1
    assert taken <= asked[0]
    assert taken > MemoryFile(again.save(tmp_path / "again")).shape(ROWS)[0] * again.setup.layout.token_bytes
    usage = SimpleNamespace(free=asked[0] - 1)
    monkeypatch.setattr(remember.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(StoreError, match="make room"):
        llm.read(memory.documents)


@pytest.mark.parametrize("tokens", [2_000, 3_800, 70_000, 200_000])
@pytest.mark.parametrize(("shelf", "most"), [("int8", 0.55), ("int4", 0.30)])
def test_a_memory_takes_a_small_part_of_a_cache_of_16_bits(shelf: Any, most: float, tokens: int) -> None:
    layout = Layout(24, 2, 64, 8 if shelf == "int8" else 4, tuple(range(16, 29)), whole=True)
    setup: Any = SimpleNamespace(layout=layout, config=PotConfig(shelf=shelf), heads=SimpleNamespace(heads=range(16)))
    assert expected_bytes(setup, tokens) / tokens <= most * (24 * 2 * 64 * 2 * 2)


def test_a_bounded_shelf_is_bounded(saved: Saved) -> None:
    file = MemoryFile(saved["bounded"][2])
    llm = saved["bounded"][0]
    rows = file.shape(ROWS)[0]
    assert 0 < rows < len(saved["bounded"][1].text)
    assert rows * llm.setup.layout.token_bytes <= 50_000


# --- killed while it reads ---

KILLED = """
import os, sys, time
import saved_samples as t
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.models.adapter import Adapter

adapter = Adapter(t.tiny_model("llama"))
llm = t.InfiniPot(adapter, t.TextCodec(t.byte_tokenizer()), t.replace(t.CONFIG, **eval(sys.argv[3])))
texts = [t.Document.from_text(f"{i} {t.SAID}" * 2, name="a") for i in range(3)]
llm.read(texts[0], store=MemoryStore(sys.argv[2]))
started = time.monotonic()
llm.read(texts[0], store=MemoryStore(sys.argv[2]), fresh=True)
print(time.monotonic() - started, flush=True)

def work():
    while True:
        for text in texts:
            llm.read(text, store=MemoryStore(sys.argv[2]), fresh=True)

for kill in range(25):
    child = os.fork()
    if not child:
        work()
    print(child, flush=True)
    assert os.waitpid(child, 0)[1] == 9, "it ended by itself"
store = MemoryStore(sys.argv[2])
print(len(store.list()), flush=True)
for text in texts:
    print(llm.read(text, store=store).ask("Who?").text == llm.read(text).ask("Who?").text, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals and fork")
def test_a_reading_that_is_killed_leaves_whole_memories_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rng, left = tmp_path / "store", random.Random(0), 0
    monkeypatch.setenv("INFINIPOT_STORE", str(tmp_path / "other"))
    with subprocess.Popen(python(KILLED, folder, {"budget": 420}), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        takes = float(process.stdout.readline())
        for _ in range(25):
            child = int(process.stdout.readline())
            time.sleep(rng.uniform(0.0, min(1.5 * takes, 0.3)))
            os.kill(child, signal.SIGKILL)
            for path in folder.glob("*.infinipot"):
                MemoryFile(path).close()  # whole
            left += any(".part" in p.name for p in folder.glob("*"))
        there = int(process.stdout.readline())
        assert 0 < there <= 3
        assert [process.stdout.readline() for _ in range(3)] == ["True\n"] * 3
        assert process.wait(20) == 0
    assert left  # some were killed in the middle
    names = sorted(p.name for p in folder.iterdir() if p.name != ".lock")
    assert sorted(n for n in names if not n.endswith(".json")) == sorted(p.name for p in folder.glob("*.infinipot"))
    assert len(names) == 6
    assert MemoryStore(folder).list()
