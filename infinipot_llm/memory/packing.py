"""Packing: keys and values of a token as one row of bytes, 8 or 4 bits per number.

A row holds `n` vectors of `D` numbers (one per layer, KV head and kind) as integers of `bits` bits, followed by one
float16 scale per group of them. Rows stand alone, so that a span is one sequential read. Keys of some models have a
constant part that dwarfs what tells tokens apart (the key bias of Qwen2): `Normal` takes it out first, per channel, as
KIVI (Liu et al. 2024, section 3) does by quantising keys per channel.
Shapes: `R` rows (tokens), `n` vectors, `D` head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GROUP = 32
"""Numbers that share a scale at 4 bits; at 8 bits a whole vector does."""


@dataclass(frozen=True)
class Packing:
    """How `vectors` vectors of `dim` numbers become one row of bytes.

    Attributes:
        bits: Per number.
        vectors: n.
        dim: D, an even number.
    """

    bits: Literal[8, 4]
    vectors: int
    dim: int

    @property
    def group(self) -> int:
        """Numbers that share a scale."""
        return GROUP if self.bits == 4 and self.dim % GROUP == 0 else self.dim

    @property
    def code_bytes(self) -> int:
        """Bytes of a row's integers."""
        return self.vectors * self.dim * self.bits // 8

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.code_bytes + 2 * self.groups

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.vectors * (self.dim // self.group)

    def encode(self, states: Tensor) -> Tensor:
        """Pack states [R, n, D] of any floating dtype; returns [R, row_bytes] uint8 on the CPU."""
        R = states.shape[0]
        top = 127 if self.bits == 8 else 7
        grouped = states.to(torch.float32).reshape(R, self.groups, self.group)
        scales = (grouped.abs().amax(dim=2) / top).clamp(6e-8, 65504.0).to(torch.float16)  # what float16 can hold
        codes = (grouped / scales.to(torch.float32)[..., None]).round_().clamp_(-top, top).to(torch.int8)
        codes = codes.reshape(R, self.vectors * self.dim)
        if self.bits == 4:
            low, high = codes[:, 0::2], codes[:, 1::2]
            codes = (low & 0x0F) | (high << 4)
        return torch.cat([codes.view(torch.uint8), scales.view(torch.uint8).reshape(R, 2 * self.groups)], dim=1).cpu()

    def decode(self, rows: Tensor) -> Tensor:
        """Unpack rows [R, row_bytes] uint8; returns [R, n, D] float32."""
        R = rows.shape[0]
        codes = rows[:, : self.code_bytes].contiguous().view(torch.int8)
        scales = rows[:, self.code_bytes :].clone(memory_format=torch.contiguous_format).view(torch.float16)
        scales = scales.nan_to_num(0.0, 0.0, 0.0).to(torch.float32)  # a stranger's file may hold what `encode` does not
        if self.bits == 4:  # shifting a signed byte right keeps its sign
            codes = torch.stack([(codes << 4) >> 4, codes >> 4], dim=2)
        grouped = codes.reshape(R, self.groups, self.group).to(torch.float32)
        return grouped.mul_(scales.reshape(R, self.groups, 1)).reshape(R, self.vectors, self.dim)


@dataclass(frozen=True)
class Normal:
    """Mean and spread per channel, taken out before packing and put back after.

    Attributes:
        mean: [n, D] float32.
        spread: [n, D] float32, above 0.
    """

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, states: Tensor) -> Normal:
        """Measure states [R, n, D]."""
        states = states.to(torch.float32)
        mean = states.mean(dim=0)
        spread = (states - mean).square().mean(dim=0).sqrt()
        floor = spread.amax(dim=1, keepdim=True).clamp_min(1e-6) * 1e-2  # a channel that hardly moves stays so
        still = mean.abs().amax(dim=1, keepdim=True) * 1e-4  # the same token over and over: what follows does move
        return cls(mean, spread.maximum(floor).maximum(still))

    def take_out(self, states: Tensor) -> Tensor:
        """Normalise states [R, n, D]."""
        return (states.to(torch.float32) - self.mean) / self.spread

    def put_back(self, states: Tensor) -> Tensor:
        """Undo `take_out` on float32 states [R, n, D]."""
        return states * self.spread + self.mean
