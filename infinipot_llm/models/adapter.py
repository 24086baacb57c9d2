"""The one place that knows transformers' internals and versions: a decoder model that reads and writes through slots.

The seam, per model and removable (nothing is patched, no modeling code is copied):

1. a pre-hook on every attention module replaces the rotary tables by the identity, so that queries and keys arrive
   un-rotated, and hands the cache on to the attention function;
2. the registered attention function (attention.py) rotates queries, the cache (slots.py) rotates keys, each by slot.

`self_check` compares the seam with the plain model at load (check.py), so that a family whose attention does something
the seam does not know is refused and never answers wrongly.
Shapes: `L` layers with slots, `C` new tokens, `V` vocabulary, `E` hidden size, `S` slots.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from infinipot_llm.errors import BudgetError, ModelError
from infinipot_llm.models import attention
from infinipot_llm.models.check import self_check
from infinipot_llm.models.layers import Layers, apply_function
from infinipot_llm.models.packed import Packed
from infinipot_llm.models.rotation import Rotation
from infinipot_llm.models.slots import SlotCache


class Adapter:
    """A decoder model of Hugging Face, switched to read through slots until `close`.

    Attributes:
        model: The model. Outside this class only `generate` is called on it (answering/decode.py).
        lock: Held while the model reads or answers: the seam and the tokenizer are shared by all threads.
        layers: L, the layers that hold slots: all, or where some layers slide and some do not, those that do not.
        windows: Of every layer of the model: how many tokens it sees where it slides and holds no slots, else None.
        all_slide: Whether all layers slide. Then there is nothing to distil for, and a budget ends at their window.
        rotates: Of every layer of the model: whether it has rotary positions.
        vocabulary: V, the number of rows of the output head.
        parameters: Weights of the model, numbers in all.
        trained: Positions that the model was trained on.
        window: Most slots of a pot. Slots are positions, so they are bounded by the trained context window.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Switch the seam on.

        Raises:
            ModelError: The model is no decoder with rotary positions that the seam can be put on, or is in use already.
        """
        if model.config._attn_implementation == attention.NAME:
            raise ModelError("this model already reads through slots: close() the other InfiniPot first, or share it.")
        self.model = model.eval()
        self.parameters = int(model.num_parameters())  # of weights in 4 bits, too
        self.lock = threading.RLock()
        known = Layers(model)
        self._layers = known
        self.config, self.family, self.trained = known.config, known.family, known.trained
        self.backbone, self.attentions = known.backbone, known.modules
        self.head = model.get_output_embeddings()
        self.vocabulary = int(self.head.weight.shape[0])
        sliding = [window for window in known.reach if window]
        self.all_slide = len(sliding) == len(known.reach)
        self.windows = (None,) * len(sliding) if self.all_slide else tuple(known.reach)
        self.layers = self.windows.count(None)
        self._taken = 0 if self.all_slide or not sliding else sliding[0] - 1  # positions of a window's tokens before
        self.window = sliding[0] if self.all_slide else self.trained - self._taken
        self._before = str(model.config._attn_implementation or "eager")
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._packs = False
        self._packed: Packed | None = None
        self.open()
        try:
            self.rotates = known.which_rotate()
        except ModelError:
            self.close()
            raise

    @property
    def device(self) -> torch.device:
        """Where the model's input goes."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's floating dtype."""
        return self.model.dtype

    def open(self) -> None:
        """Switch the seam on; no effect when it is on."""
        with self.lock:
            if self._hooks:
                return
            if self._packs:
                self._packed = Packed(self.model)
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
            self._lay_back()

    def pack(self) -> None:
        """Lay the weights of linear layers out for this CPU, as long as the seam is on (packed.py)."""
        with self.lock:
            self._packs = True
            if self._hooks and self._packed is None:
                self._packed = Packed(self.model)

    def unpack(self) -> None:
        """Lay weights out no more."""
        with self.lock:
            self._packs = False
            self._lay_back()

    def _lay_back(self) -> None:
        if self._packed is not None:
            self._packed.undo()
            self._packed = None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight of the model with its name, as it is in a plain model."""
        for name, weight in self.model.named_parameters():
            plain = None if self._packed is None else self._packed.dense(name)
            yield name, weight.detach() if plain is None else plain

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
            BudgetError: The budget is beyond the trained window, or beyond the sliding window that all layers have.
        """
        if budget <= self.window:
            return
        if self._taken:
            raise BudgetError(
                f"a budget of {budget} is too large for this model: it was trained on {self.trained} positions, and "
                f"its sliding layers need {self._taken} of them: choose a budget of at most {self.window}."
            )
        if self.all_slide:
            raise BudgetError(
                f"all layers of this model see only {self.window} tokens back: "
                f"choose a budget of at most {self.window}."
            )
        raise BudgetError(
            f"a budget of {budget} is beyond the {self.window} positions this model was trained on: "
            f"choose a budget of at most {self.window}."
        )

    def new_cache(self, slots: int) -> SlotCache:
        """Return an empty cache of `slots` slots in every layer; a window holds no more tokens than that either."""
        self.check_budget(slots)
        return SlotCache(slots, self.rotations(slots), [w and min(w, slots) for w in self.windows])

    def rotations(self, slots: int) -> list[Rotation]:
        """Build the rotary tables of every layer of the model, in float32.

        They hold the positions 0 .. slots - 1; in a layer with a window those of as many new tokens behind it.
        """
        tables: dict[tuple[Any, int], tuple[Tensor, Tensor]] = {}
        found = []
        for module, window, rotates in zip(self.attentions, self.windows, self.rotates, strict=True):
            key = self._layers.kind(module), slots + (min(window, slots) - 1 if window else 0)
            if key not in tables:
                tables[key] = self._layers.table(*key)
            found.append(Rotation(*tables[key], apply=apply_function(module) if rotates else None))
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
        return self.finished(self.raw_logits(hidden))

    def raw_logits(self, hidden: Tensor) -> Tensor:
        """Apply the output head alone to hidden states [C, E]; returns [C, V] in the model's dtype."""
        with torch.no_grad():
            return self.head(hidden)

    def finished(self, raw: Tensor) -> Tensor:
        """Return what `raw_logits` made as the model means it, in float32: capped and scaled where it does so."""
        logits = raw.to(torch.float32)
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        scale = float(getattr(self.config, "logit_scale", None) or 1.0)  # Cohere
        scale /= float(getattr(self.config, "logits_scaling", None) or 1.0)  # Granite
        return logits if scale == 1.0 else logits * scale

    def self_check(self) -> float:
        """Compare the seam with the plain model; see check.py.

        Raises:
            ModelError: They differ.
        """
        return self_check(self)


def _hand_over(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before an attention module runs: pass the cache on, rotate by nothing (x * 1 + rotate(x) * 0 is x, exactly)."""
    cos, sin = kwargs["position_embeddings"]
    identity = (torch.ones_like(cos), torch.zeros_like(sin))
    return args, {**kwargs, "position_embeddings": identity, "pot": kwargs.get("past_key_values")}


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Tell the library to build no mask: slot_attention builds its own."""
