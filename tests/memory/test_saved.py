"""Saved memories: the same answers in another process, a reason for every refusal, no trust in a stranger's file."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CHAT, byte_tokenizer, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.documents.document import Turn
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import InfiniPotError, MemoryFileError, StoreError
from infinipot_llm.memory import file as file_module
from infinipot_llm.memory.file import Draft, MemoryFile
from infinipot_llm.memory.layout import Layout
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.remember import expected_bytes
from infinipot_llm.memory.shelf import ROWS
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

CONFIG = PotConfig(budget=420, max_new_tokens=12, question_tokens=32, chunk=64, recall=96, shelf="int8")
KINDS: dict[str, dict[str, Any]] = {
    "int8": {},
    "keys": {"shelf": "keys"},
    "keys bounded": {"shelf": "keys", "shelf_bytes": 9_000},
    "int4": {"shelf": "int4"},
    "off": {"shelf": "off"},
    "bounded": {"shelf_bytes": 50_000},
    "extended": {},
    "extended bounded": {"shelf_bytes": 50_000},
}
SAID = "The mill burned in 1903. Élan naïve 東京. It was rebuilt in 1904 for 68,211 crowns. The owner moved.\n"
QUESTIONS = ("When did the mill burn?", "Who moved?")
TEXT = SAID * 6 + "\fA second page. " + SAID
SPOKEN = Document(
    "talk",
    "Ann: We met. Bob: At last.",
    Document.from_text("Ann: We met. Bob: At last.").pages,
    notes=("a note",),
    turns=(Turn(0, 12, "Ann", 0.5), Turn(13, 26, None, None)),
)


def made(kind: str, adapter: Adapter) -> tuple[InfiniPot, DocumentMemory]:
    llm = InfiniPot(adapter, TextCodec(byte_tokenizer()), replace(CONFIG, **KINDS[kind]), name="tiny")
    memory = llm.read([Document.from_text(TEXT, name="mill"), SPOKEN])
    if kind.startswith("extended"):
        memory = llm.extend(memory, Document.from_text("And the pump broke. " * 20, name="pump"))
    return llm, memory


@pytest.fixture(scope="module")
def adapter() -> Iterator[Adapter]:
    adapter = Adapter(tiny_model("llama"))
    yield adapter
    adapter.close()


Saved = dict[str, tuple[InfiniPot, DocumentMemory, Path]]


@pytest.fixture(scope="module")
def saved(adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """One memory of each kind, and its file."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINIPOT_STORE", str(folder / "store"))
        found: Saved = {}
        for kind in KINDS:
            llm, memory = made(kind, adapter)
            found[kind] = llm, memory, memory.save(folder / f"{kind}.infinipot")
        yield found


def said(memory: DocumentMemory) -> list[Any]:
    """Return everything that questions bring back, as plain JSON."""
    found: list[Any] = []
    for question in QUESTIONS:
        answer = memory.ask(question)
        found.append([answer.text, [[c.document, c.start, c.end, c.quote, c.score] for c in answer.citations]])
        found.append([answer.supported, answer.usage.recalled_tokens])
        if memory.shelved is not None:
            found.append([[s.document, s.start, s.end, s.page, s.speaker, s.time] for s, _ in memory.recall(question)])
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


OTHER_PROCESS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_saved as t
from infinipot_llm.models.adapter import Adapter

adapter = Adapter(t.tiny_model("llama"))
codec = t.TextCodec(t.byte_tokenizer())
llm = t.InfiniPot(adapter, codec, t.CONFIG, name="another name")
print(json.dumps({kind: t.said(llm.load(Path(sys.argv[2]) / f"{kind}.infinipot")) for kind in t.KINDS}))
"""


def python(script: str, *arguments: object) -> list[str]:
    paths = (Path(__file__).parent, Path(__file__).parent.parent)
    before = f"import sys; sys.path[:0] = {[str(p) for p in paths]!r}\n"
    return [sys.executable, "-c", before + script, str(paths[0]), *map(str, arguments)]


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
    share = 0.12 if kind == "int4" else 0.012
    for name in ("keys", "rotated_keys", "values"):
        # of the largest number of that layer and head: a step is a share of the largest of a vector
        most = ours[name].abs().amax(dim=(2, 3), keepdim=True)
        assert float(((ours[name] - theirs[name]).abs() / most).max()) < share
    prefix = int((ours["origin"][0, 0] < 0).sum())
    assert torch.equal(ours["keys"][:, :, :prefix], theirs["keys"][:, :, :prefix])  # computed, not stored


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


# --- sizes ---


@pytest.mark.parametrize("kind", ["int8", "int4", "keys", "bounded", "keys bounded"])
def test_the_size_is_known_beforehand(saved: Saved, kind: str) -> None:
    llm, memory, path = saved[kind]
    expected = llm.shelf_size(memory.documents)[1]
    actual = path.stat().st_size
    assert expected >= actual
    if kind in ("int8", "int4"):  # otherwise the pot counts, and it is taken to be full
        assert expected <= 1.1 * actual


@pytest.mark.parametrize(("shelf", "most"), [("int8", 0.55), ("int4", 0.30)])
def test_a_memory_takes_a_small_part_of_a_cache_of_16_bits(shelf: Any, most: float) -> None:
    layout = Layout(24, 2, 64, 8 if shelf == "int8" else 4, tuple(range(16, 29)), whole=True)
    tokens = 200_000
    setup: Any = SimpleNamespace(layout=layout, config=PotConfig(shelf=shelf), heads=SimpleNamespace(heads=range(16)))
    assert expected_bytes(setup, tokens) / tokens <= most * (24 * 2 * 64 * 2 * 2)


def test_a_bounded_shelf_is_bounded(saved: Saved) -> None:
    file = MemoryFile(saved["bounded"][2])
    llm = saved["bounded"][0]
    rows = file.shape(ROWS)[0]
    assert 0 < rows < len(saved["bounded"][1].text)
    assert rows * llm.setup.layout.token_bytes <= 50_000


# --- refused by name ---


def refusal(llm: InfiniPot, path: Path) -> str:
    with pytest.raises(MemoryFileError) as caught:
        llm.load(path)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 400
    assert told.endswith(".")
    return told


def another(**changes: Any) -> InfiniPot:
    model = changes.get("model") or tiny_model("llama")
    if "nudge" in changes:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    if "dtype" in changes:
        model = model.to(changes["dtype"])
    tokenizer = byte_tokenizer()
    if "template" in changes:
        tokenizer.chat_template = changes["template"]
    if "token" in changes:
        tokenizer.add_tokens([changes["token"]])
    return InfiniPot(Adapter(model), TextCodec(tokenizer), CONFIG)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ()),
        ({"nudge": True}, ("model",)),
        ({"dtype": torch.bfloat16}, ("model",)),
        ({"model": tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})}, ("model",)),
        ({"token": "<another>"}, ("tokenizer",)),
        ({"template": CHAT.replace("assistant", "helper")}, ("prompt",)),
        ({"template": None}, ("prompt",)),
        (
            {"nudge": True, "token": "<a>", "template": CHAT.replace("user", "x") + " "},
            ("model", "tokenizer", "prompt"),
        ),
    ],
)
def test_what_differs_is_named(saved: Saved, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    names = {"model": "weights in another dtype", "tokenizer": "another tokenizer", "prompt": "another chat template"}
    with another(**changes) as llm:
        if not parts:
            assert llm.load(saved["int8"][2]).ask(QUESTIONS[0]).text == saved["int8"][1].ask(QUESTIONS[0]).text
            return
        told = refusal(llm, saved["int8"][2])
        assert {part for part, name in names.items() if name in told} == set(parts)
        assert "(tiny)" in told


def test_another_format_version_is_named(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about, tensors = parts_of(saved["int8"][2])
    monkeypatch.setattr(file_module, "FORMAT", 2)
    forged(tmp_path / "a", about, tensors)
    monkeypatch.undo()
    assert "format 2" in refusal(saved["int8"][0], tmp_path / "a")


@pytest.mark.parametrize("name", ["x" * 5000, "two\nlines", "\x1b[2J", ["a"], {"a": 1}, 5])
def test_a_strangers_name_of_a_model_stays_one_line(saved: Saved, tmp_path: Path, name: object) -> None:
    about, tensors = parts_of(saved["int8"][2])
    about["model"] = name
    forged(tmp_path / "a", about, tensors)
    with another(nudge=True) as llm:
        told = refusal(llm, tmp_path / "a")
    assert told.isprintable()


@pytest.mark.parametrize("kind", ["int8", "bounded", "off"])
def test_damaged_bytes_are_refused(saved: Saved, tmp_path: Path, kind: str) -> None:
    llm, _, path = saved[kind]
    data, rng = bytearray(path.read_bytes()), random.Random(kind)
    for _ in range(70):
        place, flip = rng.randrange(len(data)), rng.randrange(1, 256)
        data[place] ^= flip
        (tmp_path / "a").write_bytes(data)
        refusal(llm, tmp_path / "a")
        data[place] ^= flip


def test_a_save_that_fails_leaves_nothing(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    for kind in ("int8", "extended", "off"):
        for target in (
            tmp_path / "missing" / "a",
            tmp_path / "text" / "a",
            tmp_path,
            tmp_path / ("a" * 300),
            Path("/"),
        ):
            with pytest.raises(StoreError, match="give"):
                saved[kind][1].save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


# --- forged: every checksum is right, and the content is not ---

About = dict[str, Any]
Content = dict[str, NDArray[Any]]


def parts_of(path: Path) -> tuple[About, Content]:
    file = MemoryFile(path)
    tensors = {name: file.rows(name) for name in file._entries if name != "crc"}
    file.close()
    return {k: v for k, v in file.about.items() if k != "format"}, tensors


def forged(path: Path, about: About, tensors: Content) -> Path:
    draft = Draft(path)
    try:
        for name, data in tensors.items():
            draft.add(name, data)
        draft.finish(about)
    except BaseException:
        draft.discard()
        raise
    return path


def exercise(memory: DocumentMemory) -> None:
    """Do everything that can be done with a memory."""
    assert repr(memory)
    assert memory.stats.tokens_per_second >= 0
    for document in memory.documents:
        assert document.page_count
        assert document.empty_pages is not None
    for followup in ("recall", "reuse", "reread"):
        if followup != "recall" or memory.shelved is not None:
            memory.ask("Who?", followup=followup, max_new_tokens=3, temperature=1.0, seed=0)


def changed(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[About, Content], None]:
    def apply(about: About, tensors: Content) -> None:
        tensors[name] = np.ascontiguousarray(change(tensors[name].copy()))

    return apply


def put(place: Any, value: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def apply(data: NDArray[Any]) -> NDArray[Any]:
        data[place] = value
        return data

    return apply


def told(*keys: Any, value: Any) -> Callable[[About, Content], None]:
    def apply(about: About, tensors: Content) -> None:
        inner: Any = about
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return apply


def documents(change: Callable[[list[Any]], Any]) -> Callable[[About, Content], None]:
    def apply(about: About, tensors: Content) -> None:
        held = json.loads(tensors["documents"].tobytes())
        held = change(held) or held
        tensors["documents"] = np.frombuffer(json.dumps(held).encode(), np.uint8)

    return apply


def raw_documents(data: bytes) -> Callable[[About, Content], None]:
    return changed("documents", lambda _: np.frombuffer(data, np.uint8))


def dropped(name: str) -> Callable[[About, Content], None]:
    def apply(about: About, tensors: Content) -> None:
        del tensors[name]

    return apply


def wrapped(about: About, tensors: Content) -> None:
    """Make borders of documents whose differences are all positive, because 64 bits overflow."""
    held = json.loads(tensors["documents"].tobytes())
    tensors["documents"] = np.frombuffer(json.dumps([held[0], held[1], held[1], held[0]]).encode(), np.uint8)
    tensors["first"] = np.array([0, 2**63 - 1, -(2**63), -(2**62), tensors["first"][-1]])


NAMES = ("shelf.rows", "shelf.scoring", "shelf.tokens", "shelf.mean", "shelf.spread", "null")
TEXTS = ("ids", "starts", "ends", "first", "documents")
POTS = ("pot.origin", "pot.novelty", "pot.rows", "pot.mean", "pot.spread")
FORGERIES: dict[str, tuple[str, Callable[[About, Content], None]]] = {
    **{f"no {n}": ("bounded", dropped(n)) for n in NAMES + TEXTS + POTS},
    **{f"short {n}": ("bounded", changed(n, lambda d: d[:-1])) for n in NAMES + TEXTS[:4] + POTS},
    **{f"long {n}": ("bounded", changed(n, lambda d: np.concatenate([d, d[-1:]]))) for n in NAMES + TEXTS[:4] + POTS},
    **{f"narrow {n}": ("bounded", changed(n, lambda d: d[..., :-1])) for n in (*NAMES[:2], *NAMES[3:], *POTS)},
    **{f"empty {n}": ("bounded", changed(n, lambda d: d[:0])) for n in NAMES + TEXTS + POTS},
    **{f"flat {n}": ("bounded", changed(n, lambda d: d.reshape(-1))) for n in (*NAMES[:2], *NAMES[3:], *POTS)},
    **{f"folded {n}": ("bounded", changed(n, lambda d: d[None])) for n in NAMES + TEXTS[:4] + POTS},
    **{
        f"other dtype {n}": ("bounded", changed(n, lambda d: d.astype("f4" if d.dtype != "f4" else "i4")))
        for n in NAMES + TEXTS[:4] + POTS
    },
    "tokens that do not rise": ("bounded", changed("shelf.tokens", put(5, 3))),
    "tokens twice": ("bounded", changed("shelf.tokens", put(5, 4))),
    "tokens below": ("bounded", changed("shelf.tokens", put(0, -1))),
    "tokens beyond": ("bounded", changed("shelf.tokens", put(-1, 10**6))),
    "tokens that wrap around": ("int8", changed("shelf.tokens", put([1, 2, 3], [2**31 - 1, -(2**31), -(2**30)]))),
    "a mean that is none": ("int8", changed("shelf.mean", put((0, 0), np.nan))),
    "a spread that is none": ("int8", changed("shelf.spread", put((0, 0), np.inf))),
    "a spread that overflows": ("int8", changed("shelf.spread", put((0, 0), 1e30))),
    "a spread of nothing": ("int8", changed("shelf.spread", put((0, 0), 0))),
    "a null that is none": ("int8", changed("null", put((0, 0), np.nan))),
    "ids beyond": ("int8", changed("ids", put(0, 10**6))),
    "ids below": ("int8", changed("ids", put(0, -1))),
    "starts below": ("int8", changed("starts", put(0, -1))),
    "starts behind ends": ("int8", changed("starts", put(0, 500))),
    "ends beyond": ("int8", changed("ends", put(-1, 10**6))),
    "first not 0": ("int8", changed("first", put(0, 1))),
    "first beyond": ("int8", changed("first", put(-1, 10**6))),
    "first falls": ("int8", changed("first", put(1, 10**6))),
    "first wraps around": ("int8", wrapped),
    "origin beyond": ("int8", changed("pot.origin", put((0, 0, -1), 10**6))),
    "origin beyond, bounded": ("bounded", changed("pot.origin", put((0, 0, -1), 10**6))),
    "origin below": ("int8", changed("pot.origin", put((0, 0, -1), -7))),
    "origin below, off": ("off", changed("pot.origin", put((0, 0, -1), -7))),
    "a prefix elsewhere": ("off", changed("pot.origin", put((0, 0, 0), 5))),
    "a novelty that is none": ("off", changed("pot.novelty", put((0, 0, -1), np.nan))),
    "pot.mean that is none": ("off", changed("pot.mean", put((0, 0), np.nan))),
    "too many slots": (
        "off",
        lambda a, t: t.update(
            {n: np.concatenate([t[n], *[t[n][..., -1:]] * 300], axis=-1) for n in ("pot.origin", "pot.novelty")}
        ),
    ),
    "whole although it is not": ("bounded", told("pot", "whole_shelf", value=True)),
    "whole although only keys are there": ("keys", told("pot", "whole_shelf", value=True)),
    "layout whole although only keys are there": ("keys", told("layout", "whole", value=True)),
    "whole without a shelf": ("off", told("pot", "whole_shelf", value=True)),
    "not whole although it is": ("int8", told("pot", "whole_shelf", value=False)),
    "whole of another type": ("int8", told("pot", "whole_shelf", value="yes")),
    "pinned below": ("int8", told("pot", "pinned", value=-5)),
    "pinned beyond": ("int8", told("pot", "pinned", value=10**9)),
    "pinned of another type": ("int8", told("pot", "pinned", value="3")),
    "no pot": ("int8", told("pot", value=None)),
    "fingerprints of another type": ("int8", told("fingerprints", value=[1])),
    "no fingerprints": ("int8", told("fingerprints", value={})),
    "config of another type": ("int8", told("config", value=[["budget", 3]])),
    "an unknown setting": ("int8", told("config", "magic", value=1)),
    "a budget beyond the model": ("int8", told("config", "budget", value=10**9)),
    "a budget below the pot": ("int8", told("config", "budget", value=8)),
    "a policy of another type": ("int8", told("config", "policy", value=["x"])),
    "catalysts of another type": ("int8", told("config", "catalysts", value=7)),
    "a shelf that is off": ("int8", told("config", "shelf", value="off")),
    "a shelf of other bits": ("int8", told("config", "shelf", value="int4")),
    "no layout": ("int8", told("layout", value=None)),
    "layout of another type": ("int8", told("layout", value="x")),
    "more layers": ("int8", told("layout", "layers", value=10**6)),
    "other scoring": ("int8", told("layout", "scoring", value=[0])),
    "scoring of nothing": ("int8", told("layout", "scoring", value=None)),
    "heads beyond": ("int8", told("heads", "heads", value=[[99, 0]])),
    "heads below": ("int8", told("heads", "heads", value=[[-1, 0]])),
    "heads of another type": ("int8", told("heads", value=3)),
    "endless heads": ("int8", told("heads", "heads", value=[[float("inf"), 0]])),
    "huge weights": ("int8", told("heads", "weights", value=[10**400] * 12)),
    "no weights": ("int8", told("heads", "weights", value=[])),
    "stats of another type": ("int8", told("stats", "seconds", value="fast")),
    "stats below": ("int8", told("stats", "tokens_read", value=-1)),
    "endless stats": ("int8", told("stats", "seconds", value=float("nan"))),
    "unknown stats": ("int8", told("stats", "magic", value=1)),
    "documents: none": ("int8", raw_documents(b"[]")),
    "documents: fewer": ("int8", documents(lambda d: d[:1])),
    "documents: a name of another type": ("int8", documents(lambda d: d[0].update(name=5))),
    "documents: a text of another type": ("int8", documents(lambda d: d[0].update(text=["a"]))),
    "documents: a shorter text": ("int8", documents(lambda d: d[0].update(text="a", pages=[[None, 0, 1]]))),
    "documents: no text": ("int8", documents(lambda d: d[0].pop("text"))),
    "documents: pages beyond": ("int8", documents(lambda d: d[0].update(pages=[[None, 0, 10**6]]))),
    "documents: pages below": ("int8", documents(lambda d: d[0].update(pages=[[None, -3, len(d[0]["text"])]]))),
    "documents: pages in halves": ("int8", documents(lambda d: d[1].update(pages=[[None, 0, 26.0]]))),
    "documents: pages of another type": ("int8", documents(lambda d: d[0].update(pages="abc"))),
    "documents: pages of a huge count": ("int8", documents(lambda d: d[0].update(pages=[[None, 0, 10**400]]))),
    "documents: labels of another type": ("int8", documents(lambda d: d[1].update(pages=[[{"a": 1}, 0, 26]]))),
    "documents: notes of another type": ("int8", documents(lambda d: d[0].update(notes=[5]))),
    "documents: turns beyond": ("int8", documents(lambda d: d[1].update(turns=[[0, 99, "A", 1.0]]))),
    "documents: a huge time": ("int8", documents(lambda d: d[1].update(turns=[[0, 9, "A", 10**400]]))),
    "documents: a time of another type": ("int8", documents(lambda d: d[1].update(turns=[[0, 9, "A", "1"]]))),
    "documents: a speaker of another type": ("int8", documents(lambda d: d[1].update(turns=[[0, 9, ["A"], 1.0]]))),
    "documents: turns in halves": ("int8", documents(lambda d: d[1].update(turns=[[0, 9.0, "A", 1.0]]))),
    "documents: a bomb": ("int8", raw_documents(b"[" * 200_000)),
    "documents: no JSON": ("int8", raw_documents(b"\xff\x00{")),
    "documents: a number": ("int8", raw_documents(b"5")),
    "documents: a dict": ("int8", raw_documents(b'{"a": 1}')),
    "documents: a huge number": ("int8", raw_documents(b"9" * 10_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_memory_that_contradicts_itself_is_refused_when_it_is_opened(saved: Saved, tmp_path: Path, name: str) -> None:
    kind, forge = FORGERIES[name]
    about, tensors = parts_of(saved[kind][2])
    forge(about, tensors)
    refusal(saved[kind][0], forged(tmp_path / "a", about, tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_by_the_means_of_these_tests_is_accepted(saved: Saved, tmp_path: Path, kind: str) -> None:
    llm, _, path = saved[kind]
    exercise(llm.load(forged(tmp_path / "a", *parts_of(path))))


def test_rows_of_a_stranger_that_hold_no_numbers_do_no_harm(saved: Saved, tmp_path: Path) -> None:
    about, tensors = parts_of(saved["bounded"][2])
    for name in ("shelf.rows", "shelf.scoring", "pot.rows"):
        tensors[name] = np.full_like(tensors[name], 0xFF)
    exercise(saved["bounded"][0].load(forged(tmp_path / "a", about, tensors)))


ANY = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 500),
        st.sampled_from([2**31, 2**63, 10**40, "", "int8", "x" * 30]),
        st.floats(),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from _places(part, (*path, key))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_description_does_harm(saved: Saved, tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["int8", "keys", "bounded", "off"]))
    llm, _, path = saved[kind]
    about, tensors = parts_of(path)
    place = data.draw(st.sampled_from(sorted(_places(about), key=str)))
    inner: Any = about
    for key in place[:-1]:
        inner = inner[key]
    if data.draw(st.integers(0, 5)) or isinstance(inner, list):
        inner[place[-1]] = data.draw(ANY)
    else:
        del inner[place[-1]]
    forged(tmp_path / "a", about, tensors)
    try:
        memory = llm.load(tmp_path / "a")
    except MemoryFileError:
        return
    try:
        exercise(memory)
    except InfiniPotError:
        assert place[0] == "config"  # settings that leave no room are a sentence when it comes to asking


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_content_does_harm(saved: Saved, tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["int8", "keys", "bounded", "off"]))
    llm, _, path = saved[kind]
    about, tensors = parts_of(path)
    name = data.draw(st.sampled_from(sorted(n for n, held in tensors.items() if held.size)))
    old = tensors[name]
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    how = data.draw(st.sampled_from(["noise", "bytes", "one", "shape"]))
    if how == "noise":
        tensors[name] = rng.integers(0, 256, old.nbytes, np.uint8).view(old.dtype).reshape(old.shape)
    elif how == "bytes":
        held = bytearray(old.tobytes())
        for _ in range(3):
            held[rng.integers(len(held))] ^= int(rng.integers(1, 256))
        tensors[name] = np.frombuffer(bytes(held), old.dtype).reshape(old.shape)
    elif how == "one":
        fresh = old.copy().reshape(-1)
        fresh[rng.integers(fresh.size)] = fresh[rng.integers(fresh.size)]
        tensors[name] = fresh.reshape(old.shape)
    else:
        shape = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
        dtype = data.draw(st.sampled_from([np.uint8, np.int32, np.int64, np.float16, np.float32]))
        tensors[name] = np.zeros(shape, dtype)
    forged(tmp_path / "a", about, tensors)
    try:
        memory = llm.load(tmp_path / "a")
    except MemoryFileError:
        return
    exercise(memory)


# --- killed while it reads ---

KILLED = """
import os, sys
import test_saved as t
from infinipot_llm.models.adapter import Adapter

adapter = Adapter(t.tiny_model("llama"))
llm = t.InfiniPot(adapter, t.TextCodec(t.byte_tokenizer()), t.replace(t.CONFIG, **eval(sys.argv[3])))
texts = [t.Document.from_text(f"{i} {t.SAID}" * 2, name="a") for i in range(3)]
llm.read(texts[0], store=t.MemoryStore(sys.argv[2]))
started = t.time.monotonic()
llm.read(texts[0], store=t.MemoryStore(sys.argv[2]), fresh=True)
print(t.time.monotonic() - started, flush=True)

def work():
    while True:
        for text in texts:
            llm.read(text, store=t.MemoryStore(sys.argv[2]), fresh=True)

for kill in range(25):
    child = os.fork()
    if not child:
        work()
    print(child, flush=True)
    assert os.waitpid(child, 0)[1] == 9, "it ended by itself"
store = t.MemoryStore(sys.argv[2])
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
