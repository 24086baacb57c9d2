"""The shelf: what every token of a document looked like to the model when it was read, on disk.

Un-rotated keys and values, packed (packing.py), token by token, so that any run of tokens is one read. Written once
while the document is read, never more than a chunk of it in memory; afterwards only read.
Shapes: `L` layers, `K` KV heads, `D` head dim, `C` tokens of a chunk, `R` rows (tokens on the shelf), `n` scoring keys.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinipot_llm.memory.file import Draft, Tensors, full_disk_told
from infinipot_llm.memory.layout import Layout
from infinipot_llm.memory.packing import Normal

SPAN = 32
"""Tokens that stay or go together where the shelf's size is bounded."""

MEASURED_TOKENS = 32
"""Fewer tokens than these say too little about the spread of a channel."""

ROWS, SCORING, TOKENS, MEAN, SPREAD = "shelf.rows", "shelf.scoring", "shelf.tokens", "shelf.mean", "shelf.spread"


class ShelfWriter:
    """A sink of the reader that writes the shelf's part of a memory file.

    With `most_tokens` it stays bounded: whenever the pot was distilled, those spans give way of whose slots the
    smallest share survived their first distillation: by the policy's own scores the least novel and least attended
    ones. What was read since then is held beyond the bound.
    """

    def __init__(
        self,
        draft: Draft,
        layout: Layout,
        first: int = 0,
        most_tokens: int | None = None,
        normal: Normal | None = None,
    ) -> None:
        """Begin a shelf, or a segment of one.

        Args:
            draft: The file; the shelf's rows go to its end as they come.
            layout: How a token is laid out.
            first: Index in the text of the first token that will come.
            most_tokens: The bound, or None.
            normal: That of the segments before; None: measured on the first chunk.
        """
        self.layout = layout
        self.most_spans = None if most_tokens is None else max(1, most_tokens // SPAN)
        self._draft = draft
        self._scoring = _Spans(draft.path, layout.scoring_packing.row_bytes)
        self._rest = None if most_tokens is None else _Spans(draft.path, layout.rest_packing.row_bytes)
        self._normal = normal
        self._first = first
        self._waiting: list[NDArray[np.uint8]] = []  # what the span being filled holds so far: [rest, scoring]
        self._places: dict[int, int] = {}  # span -> its place in the scratch files
        self._survived: dict[int, float] = {}  # span -> share of its slots that survived its first distillation
        self._free: list[int] = []
        self._spans = 0
        self._tokens = 0

    def take(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Write what the next C tokens left behind; keys and values are [L, K, C, D]."""
        states = self.layout.flatten(keys, values)  # [C, 2 * L * K, D]
        if self._normal is None:
            self._normal = Normal.of(states)
            if len(states) < MEASURED_TOKENS:
                self._normal = Normal(self._normal.mean, torch.ones_like(self._normal.spread))
        states = self._normal.take_out(states)
        new = [
            self.layout.rest_packing.encode(states[:, self.layout.rest]).numpy(),
            self.layout.scoring_packing.encode(states[:, self.layout.scoring]).numpy(),
        ]
        self._tokens += states.shape[0]
        held = [np.concatenate(both) for both in zip(self._waiting, new, strict=True)] if self._waiting else new
        whole = len(held[0]) - len(held[0]) % SPAN
        for start in range(0, whole, SPAN):
            self._put(*(h[start : start + SPAN] for h in held))
        self._waiting = [h[whole:].copy() for h in held]

    def distilled(self, origin: Tensor) -> None:
        """Let the least valuable spans beyond the bound go; origin [L, K, S] int is negative where no token is."""
        if self.most_spans is None:
            return
        spans = (origin[origin >= self._first].to(torch.int64) - self._first) // SPAN
        survivors = torch.bincount(spans, minlength=self._spans).tolist()
        slots = SPAN * origin.shape[0] * origin.shape[1]
        for span in self._places.keys() - self._survived.keys():
            self._survived[span] = survivors[span] / slots
        self._shrink(self.most_spans)

    def finish(self) -> None:
        """Close the shelf's tensors in the draft.

        They are: shelf.rows [R, bytes] uint8, shelf.scoring [R, bytes] uint8, shelf.tokens [R] int32 (the token of each
        row, increasing), shelf.mean and shelf.spread [2 * L * K, D] float32.
        """
        if self._normal is None:
            raise ValueError("nothing was read")
        if len(self._waiting[0]):
            self._put(*self._waiting)
        if self.most_spans is not None:
            for span in self._places.keys() - self._survived.keys():
                self._survived[span] = 1.0  # never distilled: all of it is in the pot
            self._shrink(self.most_spans)
        order = sorted(self._places)
        sizes = [min(SPAN, self._tokens - span * SPAN) for span in order]
        if self._rest is not None:
            for span, size in zip(order, sizes, strict=True):
                self._draft.write(self._rest.get(self._places[span], size))
        count = sum(sizes)
        self._draft.end(ROWS, np.uint8, (count, self.layout.rest_packing.row_bytes))
        for span, size in zip(order, sizes, strict=True):
            self._draft.write(self._scoring.get(self._places[span], size))
        self._draft.end(SCORING, np.uint8, (count, self.layout.scoring_packing.row_bytes))
        starts = [self._first + span * SPAN for span in order]
        tokens = [np.arange(a, a + size, dtype=np.int32) for a, size in zip(starts, sizes, strict=True)]
        self._draft.add(TOKENS, np.concatenate(tokens))
        self._draft.add(MEAN, self._normal.mean.cpu().numpy())
        self._draft.add(SPREAD, self._normal.spread.cpu().numpy())
        self.close()

    def close(self) -> None:
        """Remove the scratch files."""
        for spans in (self._scoring, self._rest):
            if spans is not None:
                spans.close()

    def _put(self, rest: NDArray[np.uint8], scoring: NDArray[np.uint8]) -> None:
        place = self._free.pop() if self._free else len(self._places)
        self._places[self._spans] = place
        self._spans += 1
        self._scoring.put(place, scoring)
        if self._rest is None:
            self._draft.write(rest)
        else:
            self._rest.put(place, rest)

    def _shrink(self, most: int) -> None:
        known = sorted((s for s in self._places if s in self._survived), key=lambda s: self._survived[s])
        for span in known[: max(0, len(self._places) - most)]:
            self._free.append(self._places.pop(span))


class _Spans:
    """A scratch file of places, each of which holds a span's rows; the system removes it when the process ends."""

    def __init__(self, beside: Path, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._beside = beside
        with full_disk_told(beside):
            self._file = tempfile.TemporaryFile(dir=beside.parent)  # noqa: SIM115 - closed by `close`

    def put(self, place: int, rows: NDArray[np.uint8]) -> None:
        with full_disk_told(self._beside):
            self._file.seek(place * SPAN * self._row_bytes)
            self._file.write(np.ascontiguousarray(rows).data)

    def get(self, place: int, size: int) -> NDArray[np.uint8]:
        with full_disk_told(self._beside):  # a seek writes out what was held back
            self._file.seek(place * SPAN * self._row_bytes)
            return np.frombuffer(self._file.read(size * self._row_bytes), np.uint8)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: closing writes out what was held back
            self._file.close()


class Segment:
    """The shelf of one memory file; the shelf of an extended memory, or of several joined ones, has several.

    Attributes:
        normal: What was taken out of keys and values before packing; the same in all segments of an extended memory.
        tokens: [R] int32, index of each row's token in the whole text, increasing.
    """

    def __init__(self, file: Tensors, layout: Layout, device: torch.device) -> None:
        self.file = file
        self.layout = layout
        self.tokens: NDArray[np.int32] = file.rows(TOKENS)
        self.normal = Normal(*(torch.from_numpy(file.rows(name)).to(device) for name in (MEAN, SPREAD)))
        self._device = device

    def __len__(self) -> int:
        return len(self.tokens)

    def moved(self, by: int) -> Segment:
        """Return the same segment as part of a text in which its tokens come `by` later."""
        segment = copy(self)
        segment.tokens = self.tokens + np.int32(by)
        return segment

    def scoring_keys(self, start: int, stop: int) -> Tensor:
        """Read the scoring keys of some rows, [rows, n, D] float32, un-rotated."""
        chosen = list(self.layout.scoring)
        rows = torch.from_numpy(self.file.rows(SCORING, start, stop)).to(self._device)
        return self.layout.scoring_packing.decode(rows) * self.normal.spread[chosen] + self.normal.mean[chosen]

    def load(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Read un-rotated keys and values of the rows start .. stop - 1, [L, K, rows, D] float32 each."""
        layout = self.layout
        rest = layout.rest_packing.decode(torch.from_numpy(self.file.rows(ROWS, start, stop)).to(self._device))
        scoring = layout.scoring_packing.decode(torch.from_numpy(self.file.rows(SCORING, start, stop)).to(self._device))
        states = rest.new_empty(rest.shape[0], len(layout.rest) + len(layout.scoring), layout.dim)
        states[:, list(layout.rest)] = rest
        states[:, list(layout.scoring)] = scoring
        return layout.unflatten(self.normal.put_back(states))


class Shelf:
    """All segments of a memory, seen as one list of rows in the order of the text."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self.normal = self.segments[0].normal
        self.tokens = np.concatenate([s.tokens for s in self.segments])

    def __len__(self) -> int:
        """Return R, the number of rows."""
        return len(self.tokens)

    def rows_of(self, start: int, stop: int) -> tuple[int, int]:
        """Return the rows [a, b) of the tokens start .. stop - 1; fewer, where the shelf is bounded."""
        a, b = np.searchsorted(self.tokens, (start, stop))
        return int(a), int(b)

    def scoring_keys(self, start: int, stop: int) -> Tensor:
        """Read the scoring keys of the rows start .. stop - 1, [rows, n, D] float32, un-rotated."""
        return torch.cat([segment.scoring_keys(a, b) for segment, a, b in self._parts(start, stop)])

    def load(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Read un-rotated keys and values of the rows start .. stop - 1, [L, K, rows, D] float32 each."""
        keys, values = zip(*(segment.load(a, b) for segment, a, b in self._parts(start, stop)), strict=True)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int]]:
        begin = 0
        for segment in self.segments:
            a, b = max(start - begin, 0), min(stop - begin, len(segment))
            if a < b:
                yield segment, a, b
            begin += len(segment)
