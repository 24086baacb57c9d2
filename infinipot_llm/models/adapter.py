"""The one place that knows transformers' internals and versions: a decoder model that reads and writes through slots.

The seam, per model and removable (nothing is patched, no modeling code is copied):

1. a pre-hook on every attention module replaces the rotary tables by the identity, so that queries and keys arrive
   un-rotated, and hands the cache on to the attention function;
2. the registered attention function (attention.py) rotates queries, the cache (slots.py) rotates keys, each by slot.

`self_check` compares the seam with the plain model at load, so that a family whose attention does something the seam
does not know (capped logits, normalisation after rotation, ...) is refused and never answers wrongly.
Shapes: `C` new tokens, `V` vocabulary, `E` hidden size, `S` slots.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from infinipot_llm.errors import BudgetError, ModelError
from infinipot_llm.models import attention
from infinipot_llm.models.rotation import Apply, Rotation
from infinipot_llm.models.slots import SlotCache

SELF_CHECK_TOKENS = 64
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest accepted difference of logits, as a share of the largest logit; no rotation at all differs by far more."""


class Adapter:
    """A decoder model of Hugging Face, switched to read through slots until `close`.

    Attributes:
        model: The model. Outside this class only `generate` is called on it (answering/decode.py).
        lock: Held while the model reads or answers: the seam and the tokenizer are shared by all threads.
        window: Trained context window in tokens; slots are positions, so no pot may be larger.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Switch the seam on.

        Raises:
            ModelError: The model is no decoder with rotary positions that the seam can be put on, or is in use already.
        """
        if model.config._attn_implementation == attention.NAME:
            raise ModelError("this model already reads through slots: close() the other InfiniPot first, or share it.")
        self.model = model.eval()
        self.lock = threading.RLock()
        self.config = model.config.get_text_config(decoder=True)
        self.family = str(getattr(self.config, "model_type", "unknown"))
        self.backbone, self.attentions = _find_attention(model, self.family)
        self.head = model.get_output_embeddings()
        self.window = int(getattr(self.config, "max_position_embeddings", 0) or sys.maxsize)
        self.layers = len(self.attentions)
        self._sliding = [w for w in map(self._window_of, self.attentions) if w]
        self._before = str(model.config._attn_implementation or "eager")
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.open()

    @property
    def device(self) -> torch.device:
        """Where the model's input goes."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's floating dtype."""
        return self.model.dtype

    @property
    def vocabulary(self) -> int:
        """V, the number of rows of the output head."""
        return int(self.head.weight.shape[0])

    def open(self) -> None:
        """Switch the seam on; no effect when it is on."""
        with self.lock:
            if self._hooks:
                return
            AttentionInterface.register(attention.NAME, attention.slot_attention)
            AttentionMaskInterface.register(attention.NAME, _no_mask)
            self._hooks = [a.register_forward_pre_hook(_hand_over, with_kwargs=True) for a in self.attentions]
            self.model.set_attn_implementation(attention.NAME)

    def close(self) -> None:
        """Switch the seam off: the model computes again, bit for bit, what it did before (in eval mode)."""
        with self.lock:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
            self.model.set_attn_implementation(self._before)

    def check_open(self) -> None:
        """Refuse to go on with a closed model, whose keys would be rotated twice.

        Raises:
            ModelError: The seam is off.
        """
        if not self._hooks:
            raise ModelError("this model was closed: load it again, or ask before leaving the with block.")

    def check_budget(self, budget: int) -> None:
        """Refuse a budget that this model cannot position.

        Raises:
            BudgetError: The budget is beyond the trained window, or beyond a sliding window of its layers.
        """
        if budget > self.window:
            raise BudgetError(
                f"a budget of {budget} is beyond the {self.window} positions this model was trained on: "
                f"choose a budget of at most {self.window}."
            )
        if self._sliding and budget > min(self._sliding):
            raise BudgetError(
                f"layers of this model see only {min(self._sliding)} tokens back: "
                f"choose a budget of at most {min(self._sliding)}."
            )

    def new_cache(self, slots: int) -> SlotCache:
        """Return an empty cache of `slots` slots in every layer."""
        self.check_budget(slots)
        return SlotCache(slots, self.rotations(slots))

    def rotations(self, slots: int) -> list[Rotation]:
        """Build the rotary tables of every layer for the positions 0 .. slots - 1, in float32."""
        tables: dict[Any, tuple[Tensor, Tensor]] = {}
        found = []
        kinds = getattr(self.config, "layer_types", None)
        for module in self.attentions:
            kind = kinds[module.layer_idx] if kinds else None
            if kind not in tables:
                tables[kind] = self._table(slots, kind)
            rotates = bool(getattr(module, "use_rope", True))  # SmolLM3 leaves every fourth layer without positions
            found.append(Rotation(*tables[kind], apply=_apply_function(module) if rotates else None))
        return found

    def forward(self, ids: Tensor, cache: SlotCache) -> Tensor:
        """Run C tokens through the body, appending them to the cache.

        Args:
            ids: [C], int64.
            cache: Where keys and values go; the tokens take the slots S .. S + C - 1.

        Returns:
            Hidden states before the output head, [C, E].
        """
        self.check_open()
        with torch.no_grad():
            out = self.backbone(input_ids=ids[None].to(self.device), past_key_values=cache, use_cache=True)
        return out.last_hidden_state[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output head to hidden states [C, E]; returns [C, V] in float32."""
        with torch.no_grad():
            logits = self.head(hidden).to(torch.float32)
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        scale = float(getattr(self.config, "logit_scale", None) or 1.0)  # Cohere
        scale /= float(getattr(self.config, "logits_scaling", None) or 1.0)  # Granite
        return logits if scale == 1.0 else logits * scale

    def self_check(self) -> float:
        """Compare the seam, in uneven chunks, with the plain model on the same tokens.

        Returns:
            Largest difference of logits, as a share of the largest logit.

        Raises:
            ModelError: The difference is beyond the tolerance of the model's dtype.
        """
        tokens = min(SELF_CHECK_TOKENS, self.window)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocabulary, (tokens,), generator=generator)
        bounds = [0, tokens // 2, tokens // 2 + 1, tokens]
        with self.lock, torch.no_grad():
            self.close()
            plain = self.model(input_ids=ids[None].to(self.device), use_cache=False).logits[0].to(torch.float32)
            self.open()
            if not bool(plain.isfinite().all()):
                self.close()
                raise ModelError(
                    f"this model's logits are not finite in {self.dtype} on {self.device}: choose another --dtype, "
                    "float32 for example, or fetch the model again."
                )
            try:
                cache = self.new_cache(tokens)
                ours = self.logits(torch.cat([self.forward(ids[a:b], cache) for a, b in pairwise(bounds) if b > a]))
            except (RuntimeError, TypeError, AttributeError, KeyError, ValueError) as error:
                self.close()  # a family with shapes or calls of its own
                raise ModelError(
                    f"the architecture {self.family!r} is not supported: its attention cannot be read through slots "
                    f"({type(error).__name__}); choose a Llama, Qwen2 or Qwen3 model."
                ) from error
        difference = float((ours - plain).abs().max() / plain.abs().max())
        if not difference <= TOLERANCE.get(self.dtype, 1e-1):
            self.close()
            raise ModelError(
                f"the architecture {self.family!r} is not supported: read through slots, its logits differ from the "
                f"plain model's by {difference:.1e} of the largest; choose a Llama, Qwen2 or Qwen3 model."
            )
        return difference

    def _window_of(self, module: Any) -> int | None:
        """Return how many tokens back a layer sees, None for all. Some families note it on the layer, some do not."""
        if hasattr(module, "sliding_window"):
            return module.sliding_window
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None and kinds[module.layer_idx] != "sliding_attention":
            return None
        return getattr(self.config, "sliding_window", None)

    def _table(self, slots: int, kind: str | None) -> tuple[Tensor, Tensor]:
        """Ask the model's own rotary embedding for cos and sin, [1, slots, R] in float32."""
        rotary: Any = self.backbone.rotary_emb
        positions = torch.arange(slots, device=self.device)[None]
        probe = torch.zeros(1, device=self.device, dtype=torch.float32)  # its dtype is that of the tables
        takes_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        cos, sin = rotary(probe, positions, kind) if takes_kind else rotary(probe, positions)
        return cos.to(torch.float32), sin.to(torch.float32)


def _hand_over(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before an attention module runs: pass the cache on, rotate by nothing (x * 1 + rotate(x) * 0 is x, exactly)."""
    cos, sin = kwargs["position_embeddings"]
    identity = (torch.ones_like(cos), torch.zeros_like(sin))
    return args, {**kwargs, "position_embeddings": identity, "pot": kwargs.get("past_key_values")}


def _find_attention(model: PreTrainedModel, family: str) -> tuple[nn.Module, Sequence[Any]]:
    """Find the decoder body and its attention modules, in the order of their layers."""
    backbone = getattr(model, model.base_model_prefix, None)
    layers = getattr(backbone, "layers", None)
    modules = [getattr(layer, "self_attn", None) for layer in layers or []]
    usable = modules and all(hasattr(m, "layer_idx") and hasattr(m, "head_dim") for m in modules)
    if backbone is None or not usable or not hasattr(backbone, "rotary_emb"):
        raise ModelError(
            f"the architecture {family!r} is not supported: it is no decoder with rotary positions whose layers have "
            "keys and values of their own; choose a Llama, Qwen2 or Qwen3 model."
        )
    return backbone, modules


def _apply_function(module: nn.Module) -> Apply:
    """Return the `apply_rotary_pos_emb` that this attention class itself uses."""
    apply: Apply | None = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if apply is None:
        raise ModelError(
            f"{type(module).__name__} has no rotary function of its own: this architecture is not supported."
        )
    return apply


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Tell the library to build no mask: slot_attention builds its own."""
