"""The shelf: every token comes back as it was taken, whatever the chunks; a bounded one keeps what survives best."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import StoreError
from infinipot_llm.memory.file import Draft, MemoryFile
from infinipot_llm.memory.layout import Layout
from infinipot_llm.memory.shelf import ROWS, SPAN, TOKENS, Segment, Shelf, ShelfWriter
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.pot.pot import PREFIX
from infinipot_llm.pot.reader import ReadStats

L, K, D = 3, 2, 16
CPU = torch.device("cpu")


def layout(bits: Literal[8, 4] = 8) -> Layout:
    return Layout(L, K, D, bits, (1, 2, 5), whole=True)


def states(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values [L, K, tokens, D], some channels of the keys with a constant part."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(L, K, tokens, D, generator=generator) for _ in range(2))
    keys[:, :, :, 3] += 50.0
    return keys, values


def fed(
    path: Path,
    keys: Tensor,
    values: Tensor,
    chunk: int,
    first: int = 0,
    before: Segment | None = None,
    bits: Literal[8, 4] = 8,
) -> Segment:
    draft = Draft(path)
    writer = ShelfWriter(draft, layout(bits), first, None, before.normal if before else None)
    for start in range(0, keys.shape[2], chunk):
        writer.take(first + start, keys[:, :, start : start + chunk], values[:, :, start : start + chunk])
        assert all(len(w) < SPAN for w in writer._waiting)  # nothing but a part of a span stays in memory
    writer.finish()
    draft.finish({})
    return Segment(MemoryFile(path), layout(bits), CPU)


def differ(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("chunk", [1, 7, 31, 32, 33, 64, 200])
def test_what_was_taken_comes_back_whatever_the_chunks(tmp_path: Path, chunk: int, bits: Literal[8, 4]) -> None:
    keys, values = states(200)
    segment = fed(tmp_path / "a", keys, values, chunk, bits=bits)
    near = 0.06 if bits == 8 else 0.9
    assert len(segment) == 200
    assert segment.tokens.tolist() == list(range(200))
    assert differ(segment.load(0, 200), (keys, values)) < near
    for a, b in ((0, 1), (31, 33), (63, 130), (199, 200)):
        assert differ(segment.load(a, b), (keys[:, :, a:b], values[:, :, a:b])) < near
    shelf = Shelf([segment])
    found = shelf.scoring_keys(0, 200)  # [rows, n, D]
    asked = keys.flatten(0, 1)[list(layout().scoring)].transpose(0, 1)
    assert differ([found], [asked]) < near


def test_two_ways_of_cutting_the_same_first_chunk_give_the_same_bytes(tmp_path: Path) -> None:
    keys, values = states(300)
    made = []
    for rest in (5, 32, 77, 236):
        draft = Draft(tmp_path / f"{rest}")
        writer = ShelfWriter(draft, layout())
        writer.take(0, keys[:, :, :64], values[:, :, :64])
        for start in range(64, 300, rest):
            writer.take(start, keys[:, :, start : start + rest], values[:, :, start : start + rest])
        writer.finish()
        draft.finish({})
        made.append((tmp_path / f"{rest}").read_bytes())
    assert len(set(made)) == 1


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33])
def test_a_text_of_few_tokens_has_a_shelf(tmp_path: Path, tokens: int) -> None:
    keys, values = states(tokens)
    segment = fed(tmp_path / "a", keys, values, 64)
    assert len(segment) == tokens
    assert differ(segment.load(0, tokens), (keys, values)) < 0.06


def test_a_document_that_begins_with_one_token_over_and_over_is_kept_as_well(tmp_path: Path) -> None:
    keys, values = states(200)
    keys[0, :, :64], values[0, :, :64] = keys[0, :, :1], values[0, :, :1]  # layer 0 sees the token alone
    segment = fed(tmp_path / "a", keys, values, 64)
    assert differ(segment.load(0, 200), (keys, values)) < 0.6  # channel 3 is 50 and did not move


def test_segments_are_one_list_of_rows(tmp_path: Path) -> None:
    keys, values = states(150)
    one = fed(tmp_path / "a", keys[:, :, :70], values[:, :, :70], 32)
    two = fed(tmp_path / "b", keys[:, :, 70:71], values[:, :, 70:71], 32, 70, one)
    three = fed(tmp_path / "c", keys[:, :, 71:], values[:, :, 71:], 32, 71, one)
    assert torch.equal(one.normal.spread, three.normal.spread)
    shelf = Shelf([one, two, three])
    assert len(shelf) == 150
    assert shelf.tokens.tolist() == list(range(150))
    whole = shelf.load(0, 150)
    assert differ(whole, (keys, values)) < 0.06
    scoring = shelf.scoring_keys(0, 150)
    for a, b in ((0, 70), (69, 72), (70, 71), (71, 150), (10, 140), (149, 150)):
        assert shelf.rows_of(a, b) == (a, b)
        assert differ(shelf.load(a, b), [w[:, :, a:b] for w in whole]) == 0.0
        assert torch.equal(shelf.scoring_keys(a, b), scoring[a:b])


# --- bounded ---


def origin(counts: dict[int, int], slots: int = 64, first: int = 0) -> Tensor:
    """[L, K, slots]: so many slots of each span are left, in every head."""
    held = [first + span * SPAN + i for span, count in sorted(counts.items()) for i in range(count)]
    row = torch.full((slots,), PREFIX, dtype=torch.int32)
    row[2 : 2 + len(held)] = torch.tensor(held, dtype=torch.int32)
    return row.expand(L, K, slots)


class Bounded:
    """A writer with room for three spans, and what it was fed."""

    def __init__(self, folder: Path, spans: int = 3, first: int = 0) -> None:
        self.keys, self.values = states(600)
        self.draft = Draft(folder / "a")
        self.writer = ShelfWriter(self.draft, layout(), first, spans * SPAN)
        self.first = first
        self.fed = 0

    def feed(self, tokens: int) -> None:
        a, b = self.fed, self.fed + tokens
        self.writer.take(self.first + a, self.keys[:, :, a:b], self.values[:, :, a:b])
        self.fed = b

    @property
    def held(self) -> list[int]:
        return sorted(self.writer._places)

    def done(self) -> list[int]:
        """Finish, check every row, and return the spans that are left."""
        self.writer.finish()
        self.draft.finish({})
        segment = Segment(MemoryFile(self.draft.path), layout(), CPU)
        tokens = segment.tokens.astype(np.int64) - self.first
        assert bool((np.diff(tokens) > 0).all())
        assert differ(segment.load(0, len(segment)), (self.keys[:, :, tokens], self.values[:, :, tokens])) < 0.06
        scoring = Shelf([segment]).scoring_keys(0, len(segment))
        asked = self.keys.flatten(0, 1)[[1, 2, 5]][:, tokens].transpose(0, 1)
        assert differ([scoring], [asked]) < 0.06
        return sorted({int(t) // SPAN for t in tokens})


@pytest.mark.parametrize("first", [0, 17, 40])
def test_the_spans_of_which_the_least_survived_go_first(tmp_path: Path, first: int) -> None:
    bounded = Bounded(tmp_path, first=first)
    bounded.feed(5 * SPAN)
    assert bounded.held == [0, 1, 2, 3, 4]  # pending: nothing has been distilled yet
    bounded.writer.distilled(origin({0: 9, 1: 2, 2: 5, 3: 1, 4: 7}, first=first))
    assert bounded.held == [0, 2, 4]
    bounded.feed(2 * SPAN)
    assert bounded.held == [0, 2, 4, 5, 6]
    bounded.writer.distilled(origin({0: 0, 2: 0, 4: 9, 5: 8, 6: 1}, first=first))  # the first distillation counts alone
    assert bounded.held == [0, 4, 5]
    assert bounded.done() == [0, 4, 5]


def test_what_was_never_distilled_stays_and_the_tail_is_short(tmp_path: Path) -> None:
    bounded = Bounded(tmp_path)
    bounded.feed(4 * SPAN)
    bounded.writer.distilled(origin({0: 9, 1: 2, 2: 5, 3: 1}))
    bounded.feed(SPAN + 5)
    assert bounded.done() == [0, 4, 5]
    assert len(MemoryFile(tmp_path / "a").rows(TOKENS)) == 2 * SPAN + 5


def test_places_of_spans_that_went_are_used_again(tmp_path: Path) -> None:
    bounded = Bounded(tmp_path)
    kept = {0: 9}
    for span in range(17):
        bounded.feed(SPAN)
        kept[span] = 1 + (7 * span) % 10
        bounded.writer.distilled(origin(kept, slots=200))
        assert len(bounded.held) <= 3
        assert set(bounded.writer._places.values()) <= set(range(4))  # the scratch file grows no further
    assert bounded.done() == sorted(sorted(range(17), key=lambda s: ((1 + (7 * s) % 10) if s else 1, s))[-3:])


@pytest.mark.parametrize("chunk", [1, 7, 32, 50, 600])
def test_a_bounded_shelf_never_ends_beyond_its_bound(tmp_path: Path, chunk: int) -> None:
    bounded = Bounded(tmp_path)
    while bounded.fed < 600:
        bounded.feed(min(chunk, 600 - bounded.fed))
        if bounded.fed % 5 == 0:
            bounded.writer.distilled(origin({bounded.fed // 2 // SPAN: 20}))
    assert len(bounded.done()) <= 3
    file = MemoryFile(tmp_path / "a")
    assert file.shape(ROWS)[0] <= 3 * SPAN
    assert file.nbytes < 64 * 1024 + 3 * SPAN * (layout().token_bytes + 4) + 2 * 2 * L * K * D * 4 + 8


def test_a_bound_that_everything_fits_into_drops_nothing(tmp_path: Path) -> None:
    bounded = Bounded(tmp_path, spans=10)
    bounded.feed(300)
    bounded.writer.distilled(origin({}))
    assert bounded.done() == list(range(10))


def test_a_bound_below_a_span_keeps_one_span(tmp_path: Path) -> None:
    bounded = Bounded(tmp_path, spans=0)
    bounded.feed(100)
    assert len(bounded.done()) == 1


# --- errors ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINIPOT_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock") if folder.exists() else []


DOCUMENT = Document.from_text("The mill burned in 1903 and was rebuilt. " * 30, name="mill")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("bound", [None, 30_000])
@pytest.mark.parametrize("stored", [False, True])
def test_a_reading_that_is_interrupted_leaves_no_file(
    tiny_llm: InfiniPot, folder: Path, kind: type[BaseException], bound: int | None, stored: bool
) -> None:
    from dataclasses import replace

    tiny_llm.config = replace(tiny_llm.config, shelf_bytes=bound)
    seen: list[list[str]] = []

    def progress(stats: ReadStats) -> None:
        seen.append(files(folder))
        if stats.cycles:
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        tiny_llm.read(DOCUMENT, store=MemoryStore() if stored else None, progress=progress)
    assert any(name.endswith(".part") for names in seen for name in names)  # it had begun
    assert files(folder) == []
    assert tiny_llm.read(DOCUMENT).stats.tokens_read == len(DOCUMENT.text)  # and the model is free again


def test_the_file_of_a_memory_goes_when_the_memory_does(tiny_llm: InfiniPot, folder: Path) -> None:
    memory = tiny_llm.read(DOCUMENT)
    more = tiny_llm.extend(memory, DOCUMENT)
    assert len([n for n in files(folder) if n.endswith(".part")]) == 2
    del memory
    import gc

    gc.collect()
    assert more.recall("mill?", 64)  # it shares what the first memory wrote
    del more
    gc.collect()
    assert files(folder) == []


@pytest.mark.parametrize("writes", [0, 1, 3, 20])
@pytest.mark.parametrize("bound", [None, 30_000])
def test_a_full_disk_under_the_scratch_is_a_sentence_and_leaves_nothing(
    tiny_llm: InfiniPot, folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int, bound: int | None
) -> None:
    from dataclasses import replace

    tiny_llm.config = replace(tiny_llm.config, shelf_bytes=bound)
    left = [writes]

    class Full:
        """A scratch file whose disk is full after some writes; closing it fails as well, as buffered files do."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self._file.write(data))

        def seek(self, place: int) -> int:
            return int(self._file.seek(place))

        def close(self) -> None:
            self._file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **named: Full(made(**named)))
    with pytest.raises(StoreError, match="is full"):
        tiny_llm.read(DOCUMENT)
    assert files(folder) == []


def test_a_folder_without_room_is_refused_before_anything_is_read(
    tiny_llm: InfiniPot, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    told: list[ReadStats] = []
    with pytest.raises(StoreError, match="make room"):
        tiny_llm.read(DOCUMENT, progress=told.append)
    assert not told
    assert files(folder) == []
