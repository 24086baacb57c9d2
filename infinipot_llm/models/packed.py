"""Linear layers on a CPU whose weights are laid out once, and not in every call.

oneDNN multiplies by a weight in a layout of its own. torch hands it the plain matrix, which it lays out anew in every
call (bf16), or takes another library, slow on some CPUs (float32, MKL on AMD). Laid out once, the same weights
multiply 1.1 to 2.5 times as fast, the more so the fewer tokens there are (docs/speed.md); in bf16 the results were the
same, bit for bit. The two operators are those that torch's own compiler puts into its graphs; they are tried out before
they are used.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from infinipot_llm.models.resources import return_free_pages

WORTH_IT = 1.2
"""How many times as fast a few tokens must be multiplied by laid-out weights for a model to be kept so."""


class Packed:
    """The linear layers of a model with laid-out weights, until `undo`; their plain weights are let go of."""

    def __init__(self, model: nn.Module) -> None:
        """Lay out every linear layer; one whose weight is used elsewhere too (a tied output head) stays as it is."""
        layers = {f"{name}.weight": m for name, m in model.named_modules() if type(m) is nn.Linear}
        users = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        self._held: dict[str, tuple[nn.Linear, Tensor]] = {}
        for name, layer in layers.items():
            if users[id(layer.weight)] == 1:
                laid_out = _lay_out(layer.weight.detach())
                layer.weight.data = layer.weight.new_empty(0)
                layer.__dict__["forward"] = partial(_multiply, laid_out, layer.bias)
                self._held[name] = layer, laid_out
        return_free_pages()  # plain and laid-out weights leave holes in the heap, half their size

    def dense(self, name: str) -> Tensor | None:
        """Return the plain weight with this name, None where it was not laid out."""
        held = self._held.get(name)
        return None if held is None else held[1].to_dense()

    def undo(self) -> None:
        """Put the plain weights back, bit for bit."""
        for layer, laid_out in self._held.values():
            layer.weight.data = laid_out.to_dense()
            del layer.__dict__["forward"]
        self._held = {}
        return_free_pages()  # plain and laid-out weights leave holes in the heap, half their size


@cache
def pays(dtype: torch.dtype) -> bool:
    """Tell whether laid-out weights multiply rightly and faster on this CPU: some 50 ms, once per process."""
    if dtype not in (torch.bfloat16, torch.float32):
        return False
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(8, 1024, generator=generator).to(dtype)
    weight = torch.randn(1024, 1024, generator=generator).to(dtype)
    plain = [weight.clone() for _ in range(12)]  # more than the caches next to a core hold
    try:
        laid_out = [_lay_out(weight) for weight in plain]
        off = (_multiply(laid_out[0], None, tokens) - nn.functional.linear(tokens, plain[0])).abs().max()
        same = torch.equal(laid_out[0].to_dense(), plain[0])
    except (AttributeError, RuntimeError, TypeError):  # another build of torch
        return False
    if not same or off > (1.0 if dtype == torch.bfloat16 else 1e-3):
        return False
    ways: tuple[Callable[[], Any], ...] = (
        lambda: [nn.functional.linear(tokens, weight) for weight in plain],
        lambda: [_multiply(weight, None, tokens) for weight in laid_out],
    )
    best = [float("inf"), float("inf")]
    for _ in range(5):  # in turns: the machine may be busy
        for i, way in enumerate(ways):
            started = time.perf_counter()
            way()
            best[i] = min(best[i], time.perf_counter() - started)
    return best[0] >= WORTH_IT * best[1]


def _lay_out(weight: Tensor) -> Tensor:
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return laid_out


def _multiply(laid_out: Tensor, bias: Tensor | None, tokens: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, laid_out, bias, "none", [], "")
    return product
