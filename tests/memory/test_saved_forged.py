"""Forged memories, of which every checksum is right: no trust in a stranger's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from saved_samples import KINDS, About, Content, Saved, forged, parts_of, refusal
from saved_samples import adapter as adapter
from saved_samples import saved as saved

from infinipot_llm.errors import InfiniPotError, MemoryFileError
from infinipot_llm.memory.memory import DocumentMemory


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
    **{
        f"flat {n}": ("bounded", changed(n, lambda d: d.reshape(-1)))
        for n in (*NAMES[:2], *NAMES[3:], *POTS)
        if n != "pot.novelty"  # which is
    },
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
    "origin beyond": ("int8", changed("pot.origin", put((0, 0, -1), 2**16 - 1))),
    "origin beyond, bounded": ("bounded", changed("pot.origin", put((0, 0, -1), 2**16 - 1))),
    "a novelty that is none": ("off", changed("pot.novelty", put(-1, np.nan))),
    "pot.mean that is none": ("off", changed("pot.mean", put((0, 0), np.nan))),
    "too many slots": (
        "off",
        changed("pot.origin", lambda d: np.concatenate([d, *[d[..., -1:]] * 300], axis=-1)),
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
