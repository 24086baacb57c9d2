"""What the attention layers of a model are like: how far each sees, whether it has rotary positions, and which.

All of it is read from properties of modules and configuration, or tried out; no family is known by name.
Shapes: `R` rotated dims.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infinipot_llm.errors import ModelError
from infinipot_llm.models.rotation import Apply, Rotation
from infinipot_llm.models.slots import Attending, SlotCache

KINDS = {"full_attention", "attention", "sliding_attention"}
"""Kinds of layers, as configurations call them, whose mask the seam makes itself."""

LISTED = "docs/models.md lists those that can be read through a pot."


class Layers:
    """The attention layers of a decoder.

    Attributes:
        config: Of the (text) model.
        family: What the configuration calls the architecture.
        backbone: The decoder body.
        modules: The attention module of every layer, in order.
        trained: Positions that the model was trained on.
        reach: Of every layer, how many tokens it sees, its own included; None for all.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Look at a model.

        Raises:
            ModelError: It is no decoder with rotary positions, or attends in ways that the seam does not know.
        """
        self.config = model.config.get_text_config(decoder=True)
        self.family = str(getattr(self.config, "model_type", "unknown"))
        backbone = getattr(model, model.base_model_prefix, None)
        modules: list[Any] = [getattr(layer, "self_attn", None) for layer in getattr(backbone, "layers", None) or []]
        usable = modules and all(hasattr(m, "layer_idx") and hasattr(m, "head_dim") for m in modules)
        if backbone is None or not usable or not hasattr(backbone, "rotary_emb"):
            raise self.refusal("it is no decoder with rotary positions whose layers have keys and values of their own")
        self.backbone: nn.Module = backbone
        self.modules = modules
        self.trained = int(getattr(self.config, "max_position_embeddings", 0) or sys.maxsize)
        self.reach = [self._reach(module) for module in modules]
        if len({window for window in self.reach if window}) > 1:
            raise self.refusal("its sliding layers have windows of several sizes")

    def refusal(self, reason: str) -> ModelError:
        """Return the error that refuses this model for a reason."""
        return ModelError(f"the architecture {self.family!r} is not supported: {reason}; {LISTED}")

    def kind(self, module: Any) -> str | None:
        """Return what the configuration calls a layer's attention, None where all layers are alike."""
        kinds = getattr(self.config, "layer_types", None)
        return kinds[module.layer_idx] if kinds else None

    def table(self, kind: str | None, positions: int) -> tuple[Tensor, Tensor]:
        """Ask the model's own rotary embedding for cos and sin, [1, positions, R] in float32."""
        rotary: Any = self.backbone.rotary_emb
        device = next(self.backbone.parameters()).device
        places = torch.arange(positions, device=device)[None]
        probe = torch.zeros(1, device=device, dtype=torch.float32)  # its dtype is that of the tables
        takes_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        cos, sin = rotary(probe, places, kind) if takes_kind else rotary(probe, places)
        return cos.to(torch.float32), sin.to(torch.float32)

    def which_rotate(self) -> list[bool]:
        """Tell which layers have rotary positions, by trying: some families leave some of their layers without.

        To be called while the model's attention function is that of the slots.

        Raises:
            ModelError: The attention modules cannot be called through slots.
        """
        weight = next(self.backbone.parameters())
        hidden = torch.randn((1, 1, int(self.config.hidden_size)), generator=torch.Generator().manual_seed(0))
        hidden, count = hidden.to(weight), len(self.modules)
        found = []
        for module in self.modules:
            seen: list[Attending] = []
            try:
                cos, sin = (table[:, 1:].to(weight) for table in self.table(self.kind(module), 2))  # of position 1
                for tables in ((cos, sin), (torch.ones_like(cos), torch.zeros_like(sin))):
                    cache = SlotCache(1, [Rotation(cos, sin, apply=None)] * count, [None] * count)
                    cache.observer = seen.append
                    with torch.no_grad():  # not a call, which would put the identity in the place of any tables
                        module.forward(
                            hidden, position_embeddings=tables, attention_mask=None, past_key_values=cache, pot=cache
                        )
            except (RuntimeError, TypeError, AttributeError, KeyError, ValueError, IndexError) as error:
                raise self.refusal(f"its attention cannot be called through slots ({type(error).__name__})") from error
            if len(seen) != 2:
                raise self.refusal("its attention is computed in several parts")
            if seen[0].key.shape[1] != getattr(self.config, "num_key_value_heads", None):
                raise self.refusal("its configuration does not say how many heads its keys have")
            found.append(not torch.equal(seen[0].raw_query, seen[1].raw_query))
        return found

    def _reach(self, module: Any) -> int | None:
        """Return how many tokens a layer sees; some families note it on the layer, some do not."""
        kind = self.kind(module)
        if kind is not None and kind not in KINDS:
            raise self.refusal(f"it has layers of the kind {kind!r}")
        if kind not in (None, "sliding_attention"):
            return None
        window = getattr(module, "sliding_window", getattr(self.config, "sliding_window", None))
        return window if window and window < self.trained else None


def apply_function(module: nn.Module) -> Apply:
    """Return the `apply_rotary_pos_emb` that this attention class itself uses."""
    apply: Apply | None = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if apply is None:
        raise ModelError(
            f"{type(module).__name__} has no rotary function of its own: this architecture is not supported."
        )
    return apply
