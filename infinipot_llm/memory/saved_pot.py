"""The pot in a memory's file, and back.

It is stored as token numbers: every slot holds what the shelf holds of the same token, so that a list of tokens per
layer and head is enough. Only where the shelf is bounded or off are the pot's own keys and values stored, and always
those of sliding layers, which are not on the shelf.
Shapes: `N` tokens of the text, `L` layers with slots, `K` KV heads, `S` slots, `P` slots of the prompt's prefix, `D`
head dim, `A` sliding layers, `n` tokens that they hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from infinipot_llm.errors import MemoryFileError
from infinipot_llm.memory.file import Draft, MemoryFile
from infinipot_llm.memory.packing import Normal, Packing
from infinipot_llm.memory.setup import Setup
from infinipot_llm.memory.shelf import Shelf
from infinipot_llm.pot.pot import PREFIX, Pot, Recent

LARGEST = 1e6
"""No mean and no spread of a channel is as large; larger ones would overflow in attention."""


SHORT = 1 << 16
"""Tokens that 16 bits can number: where a text is short, the numbers of its tokens are a large part of its file."""


def _number_type(tokens: int) -> type[Any]:
    return np.uint16 if tokens <= SHORT else np.int32


def check_normal(file: MemoryFile, mean: str, spread: str, shape: tuple[int, int]) -> None:
    """Refuse means and spreads of channels that packed states could not be read with.

    Raises:
        MemoryFileError: They have another shape.
        ValueError: One is no number, too large, or a spread that is not above 0.
    """
    for name in (mean, spread):
        file.expect(name, np.float32, shape)
        if not (np.abs(file.rows(name)) < LARGEST).all():  # False for what is no number
            raise ValueError(name)
    if not (file.rows(spread) > 0).all():
        raise ValueError(spread)


def check_pot(file: MemoryFile, about: dict[str, Any], setup: Setup, tokens: int, rows: int) -> None:
    """Refuse a pot that `read_pot` could not rebuild.

    Raises:
        MemoryFileError: It does not fit model, budget, text or shelf.
        ValueError: It does not.
    """
    adapter, P = setup.adapter, len(setup.form.prefix)
    L, K, D = adapter.layers, int(adapter.config.num_key_value_heads), int(adapter.attentions[0].head_dim)
    S = P + file.shape("pot.origin")[-1]
    file.expect("pot.origin", _number_type(tokens), (L, K, S - P))
    file.expect("pot.novelty", np.float16, (tokens,))
    held, whole, pinned = file.rows("pot.origin"), about["whole_shelf"], about["pinned"]
    if not P <= S <= setup.config.budget or type(pinned) is not int or not P <= pinned <= S:
        raise ValueError("slots")
    if (held < 0).any() or (held >= tokens).any():
        raise ValueError("origin")
    if not np.isfinite(file.rows("pot.novelty")).all():
        raise ValueError("novelty")
    if type(whole) is not bool or (whole and (rows != tokens or not setup.layout.whole)):
        raise ValueError("whole_shelf")
    if not whole:
        _check_states(file, "pot", (L, K, S - P, D))
    if A := len(adapter.windows) - L:
        reach = min(max(w for w in adapter.windows if w), setup.config.budget) - 1
        n = file.shape("recent.origin")[-1]
        file.expect("recent.origin", np.int32, (n,))
        recent = file.rows("recent.origin")
        if n != min(reach, P + tokens) or recent.min(initial=0) < PREFIX or recent.max(initial=0) >= tokens:
            raise ValueError("recent")
        _check_states(file, "recent", (A, K, n, D))


def write_pot(draft: Draft, pot: Pot, prefix: int, tokens: int, whole_shelf: bool) -> dict[str, Any]:
    """Write the pot; returns what `read_pot` must know of it.

    Writes pot.origin [L, K, S - P], uint16 where that can number the tokens and int32 elsewhere, and pot.novelty [N]
    float16, which is that of a token in whichever head holds it, 0 where none does. Where the shelf does not hold
    everything, pot.rows [S - P, bytes] with pot.mean and pot.spread [2 * L * K, D] float32: slots packed as the shelf
    packs tokens. Where there are sliding layers recent.origin [n] int32, and recent.rows [n, bytes], recent.mean and
    recent.spread [2 * A * K, D] likewise.

    Args:
        draft: The file.
        pot: What is left of the text.
        prefix: P.
        tokens: N.
        whole_shelf: Whether the shelf in the file holds every token whole.
    """
    held = pot.origin[:, :, prefix:].cpu().numpy()
    novelty = np.zeros(tokens, np.float16)
    novelty[held] = pot.novelty[:, :, prefix:].clamp(0, 6e4).cpu().numpy()
    draft.add("pot.origin", held.astype(_number_type(tokens)))
    draft.add("pot.novelty", novelty)
    if not whole_shelf:
        _write_states(draft, "pot", *pot.newest(pot.length - prefix))  # [L, K, S - P, D]
    if (recent := pot.recent()) is not None:
        draft.add("recent.origin", recent.origin.cpu().numpy())
        _write_states(draft, "recent", recent.keys, recent.values)
    return {"pinned": pot.pinned, "whole_shelf": whole_shelf}


def read_pot(file: MemoryFile, about: dict[str, Any], setup: Setup, shelf: Shelf | None) -> Pot:
    """Rebuild the pot that `write_pot` wrote, but for rounding by the packing.

    Raises:
        MemoryFileError: It does not fit model, budget or shelf.
    """
    damaged = MemoryFileError(f"{file.path.name} holds a pot that contradicts itself: read the document again.")
    adapter, prefix, budget = setup.adapter, setup.prefix, setup.config.budget
    device = adapter.device
    held = torch.from_numpy(file.rows("pot.origin").astype(np.int32)).to(device)
    novelty = torch.from_numpy(file.rows("pot.novelty").astype(np.float32)).to(device)
    P, D = prefix[0].shape[2], prefix[0].shape[3]
    L, K, S = held.shape[0], held.shape[1], P + held.shape[2]
    if not P <= S <= budget or (adapter.layers, prefix[0].shape[1]) != (L, K) or (held >= len(novelty)).any():
        raise damaged
    pot = Pot(adapter, budget)
    pot.place(*prefix, torch.full((P,), PREFIX))
    if S > P:
        keys, values = (torch.zeros(L, K, S - P, D, device=device) for _ in range(2))
        if about["whole_shelf"] and shelf is not None:
            tokens = torch.from_numpy(shelf.tokens.astype(np.int64)).to(device)
            found = held < 0
            for start in range(0, len(shelf), 1024):
                stop = min(start + 1024, len(shelf))
                row = torch.searchsorted(tokens[start:stop], held.to(torch.int64))
                here = row < stop - start
                here &= tokens[start:stop][row.clamp_max(stop - start - 1)] == held
                if bool(here.any()):
                    some_keys, some_values = shelf.load(start, stop)
                    layer, head, slot = here.nonzero(as_tuple=True)
                    keys[layer, head, slot] = some_keys[layer, head, row[here]]
                    values[layer, head, slot] = some_values[layer, head, row[here]]
                    found |= here
            if not bool(found.all()):
                raise damaged
        else:
            if tuple(file.shape("pot.rows")) != (S - P, Packing(8, 2 * L * K, D).row_bytes):
                raise damaged
            keys, values = _read_states(file, "pot", (L, K, S - P, D), device)
        pot.place(keys, values, held, novelty[held.to(torch.int64)])
    if A := len(pot.cache.sliding):
        recent = torch.from_numpy(file.rows("recent.origin")).to(device)
        pot.hold_recent(Recent(*_read_states(file, "recent", (A, K, len(recent), D), device), recent))
    pot.pinned = min(int(about["pinned"]), S)
    return pot


def _write_states(draft: Draft, name: str, keys: Tensor, values: Tensor) -> None:
    """Write keys and values [layers, K, n, D], packed: NAME.rows [n, bytes], NAME.mean and NAME.spread."""
    states = torch.cat([keys.flatten(0, 1), values.flatten(0, 1)]).transpose(0, 1)  # [n, 2 * layers * K, D]
    normal = Normal.of(states)
    draft.add(f"{name}.rows", Packing(8, states.shape[1], states.shape[2]).encode(normal.take_out(states)).numpy())
    draft.add(f"{name}.mean", normal.mean.cpu().numpy())
    draft.add(f"{name}.spread", normal.spread.cpu().numpy())


def _read_states(
    file: MemoryFile, name: str, shape: tuple[int, int, int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Read what `_write_states` wrote, [layers, K, n, D] float32 each."""
    layers, K, n, D = shape
    rows = torch.from_numpy(file.rows(f"{name}.rows")).to(device)
    normal = Normal(*(torch.from_numpy(file.rows(f"{name}.{part}")).to(device) for part in ("mean", "spread")))
    states = normal.put_back(Packing(8, 2 * layers * K, D).decode(rows))
    both = states.transpose(0, 1).reshape(2, layers, K, n, D)
    return both[0], both[1]


def _check_states(file: MemoryFile, name: str, shape: tuple[int, int, int, int]) -> None:
    """Refuse states that `_read_states` could not read.

    Raises:
        MemoryFileError: They do not fit.
        ValueError: They do not fit.
    """
    layers, K, n, D = shape
    file.expect(f"{name}.rows", np.uint8, (n, Packing(8, 2 * layers * K, D).row_bytes))
    check_normal(file, f"{name}.mean", f"{name}.spread", (2 * layers * K, D))
