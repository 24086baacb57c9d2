"""The picture: a panel for each arm, colours that are the scores, hatching where nothing could be run."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infinipot_llm.errors import BudgetError, ModelError, StoreError
from infinipot_llm.evaluation.heatmap import COLOURS, draw

pytest.importorskip("matplotlib")


def rows_of(arm: str, scores: dict[tuple[int, int], float | None]) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "facts": {"length": length, "depth": depth}, **({"refused": "x"} if s is None else {"score": s})}
        for (length, depth), s in scores.items()
    ]


def pixels(path: Path) -> NDArray[np.float64]:
    from matplotlib.image import imread

    return np.asarray(imread(path), dtype=np.float64)[:, :, :3]


def share_of(image: NDArray[np.float64], score: float) -> float:
    """Return the share of the pixels, left of the scale of colours, that have a score's colour."""
    from matplotlib import colormaps

    left = image[:, : int(image.shape[1] * 0.8)]
    wanted = np.asarray(colormaps[COLOURS](score)[:3])
    return float((np.abs(left - wanted).max(axis=2) < 0.004).mean())


def test_colours_are_scores_and_pictures_are_repeatable(tmp_path: Path) -> None:
    rows = rows_of("full", {(4096, 0): 1.0, (4096, 100): 0.0, (8192, 0): None, (8192, 100): None})
    draw(rows, tmp_path / "a.png", title="needles")
    draw(rows, tmp_path / "b.png", title="needles")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    image = pixels(tmp_path / "a.png")
    assert share_of(image, 1.0) > 0.05
    assert share_of(image, 0.0) > 0.05
    assert share_of(image, 0.5) < 0.001
    grey = float((np.abs(image - 0.85).max(axis=2) < 0.01).mean())
    assert grey > 0.05, "what was refused is grey"
    draw(rows_of("full", {(4096, 0): 0.5}), tmp_path / "half.png")
    assert share_of(pixels(tmp_path / "half.png"), 0.5) > 0.05


def test_a_cell_is_the_mean_of_its_needles(tmp_path: Path) -> None:
    draw(rows_of("a", {(4096, 0): 1.0}) + rows_of("a", {(4096, 0): 0.0}), tmp_path / "a.png")
    assert share_of(pixels(tmp_path / "a.png"), 0.5) > 0.05


def test_a_panel_for_each_arm(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 3, 4):
        draw([r for n in range(count) for r in rows_of(f"arm {n}", {(4096, 0): 1.0})], tmp_path / "a.png")
        sizes.append(pixels(tmp_path / "a.png").shape[:2])
    assert sizes[1][1] > 2 * sizes[0][1] * 0.8, "three stand side by side"
    assert sizes[2][0] > 1.5 * sizes[1][0], "the fourth begins a second line"


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BudgetError, match="no results"):
        draw([], tmp_path / "a.png")
    rows = rows_of("full", {(4096, 0): 1.0})
    with pytest.raises(StoreError, match="cannot be written"):
        draw(rows, tmp_path / "none" / "a.png")
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModelError, match=r"pip install \"infinipot-llm\[eval\]\""):
        draw(rows, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
