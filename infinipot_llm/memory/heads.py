"""Retrieval heads: the few attention heads whose queries find the passage that answers a question.

Most heads look elsewhere (at the first tokens, at punctuation, at what they copy next), and summed over all of them a
question finds little. A calibrated list (calibrate.py) of some sixteen heads finds far more, at a fraction of the
bytes: QRHead (Zhang et al. 2025) and CoRe (Tran et al. 2025) report the same. docs/recall.md holds our measurements.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from infinipot_llm.errors import ModelError
from infinipot_llm.memory.answerable import Judge
from infinipot_llm.models.catalogue import cache_dir


def calibrated_folder() -> Path:
    """Return the folder of the lists that were calibrated on this machine."""
    return cache_dir() / "heads"


@dataclass(frozen=True)
class Heads:
    """Query heads that score, and how much each counts.

    Attributes:
        heads: (layer, query head) of each.
        weights: Of each, above 0.
        calibrated: Whether they were found by measuring this model.
        judge: What their attention says about whether a question is answered at all; None where it was not measured.
    """

    heads: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    calibrated: bool
    judge: Judge | None = None

    @classmethod
    def default(cls, layers: int, query_heads: int) -> Heads:
        """Return a list for a model that nobody calibrated: every head of four layers between a third and two thirds.

        Retrieval heads were found there in every model looked at (Qwen2.5, Qwen3, Llama 3).
        """
        chosen = sorted({round(layers * part) for part in (0.33, 0.42, 0.5, 0.6)} & set(range(layers))) or [0]
        heads = tuple((layer, head) for layer in chosen for head in range(query_heads))
        return cls(heads, (1.0,) * len(heads), calibrated=False)

    @classmethod
    def known(cls, model: str, fingerprint: Callable[[], str], layers: int, query_heads: int) -> Heads:
        """Return the list that `infinipot calibrate` left on this machine, the one shipped for a model, or the default.

        Args:
            model: A name of the catalogue, or any other name.
            fingerprint: Tells the model's weights; asked only where something was calibrated on this machine.
            layers: Of the model.
            query_heads: Of the model, per layer.

        Raises:
            ModelError: The list that was calibrated here is damaged, or does not fit the model.
        """
        if calibrated_folder().is_dir() and (own := calibrated_folder() / f"{fingerprint()}.json").is_file():
            try:
                values = json.loads(own.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ModelError(f"the retrieval heads in {own} cannot be read: calibrate the model again.") from error
            return cls.from_dict(values, layers, query_heads)
        file = resources.files("infinipot_llm.memory") / "heads" / f"{model}.json"
        if not re.fullmatch(r"[a-z0-9.-]+", model) or not file.is_file():
            return cls.default(layers, query_heads)
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")), layers, query_heads)

    @classmethod
    def from_dict(cls, values: dict[str, Any], layers: int, query_heads: int) -> Heads:
        """Read a list from JSON values.

        Raises:
            ModelError: It does not fit a model of this many layers and heads.
        """
        try:
            heads = tuple((int(layer), int(head)) for layer, head in values["heads"])
            weights = tuple(float(w) for w in values["weights"])
            good = (
                len(heads) == len(weights) > 0 and len(set(heads)) == len(heads) and all(0 < w < 1e6 for w in weights)
            )
            good = good and all(0 <= layer < layers and 0 <= head < query_heads for layer, head in heads)
            calibrated = bool(values["calibrated"])
            judge = values.get("judge")
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError("a list of retrieval heads cannot be read: calibrate the model again.") from error
        if not good:
            raise ModelError("a list of retrieval heads does not fit this model: calibrate the model again.")
        return cls(heads, weights, calibrated, None if judge is None else Judge.from_dict(judge))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def scoring_keys(self, query_heads: int, kv_heads: int) -> tuple[int, ...]:
        """Return the indices (layer * K + KV head) of the keys that these heads look at, increasing."""
        group = query_heads // kv_heads
        return tuple(sorted({layer * kv_heads + head // group for layer, head in self.heads}))
