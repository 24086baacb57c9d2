"""Where needles were found, as a picture: context length across, depth down, the score as colour."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infinipot_llm.errors import BudgetError, ModelError, StoreError
from infinipot_llm.evaluation.rows import Row
from infinipot_llm.evaluation.tables import by_cell, length_name

COLOURS = "viridis"  # readable without colour vision, and in grey: dark is 0, light is 1
_DARK = 0.55  # numbers are white on cells that score less
_COLUMNS = 3
_CELL = 0.62  # inches


def check_matplotlib() -> None:
    """Refuse to begin what could not be drawn in the end.

    Raises:
        ModelError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ModelError('pictures need matplotlib: pip install "infinipot-llm[eval]".') from error


def draw(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Write a PNG with a panel for each arm; all panels have the same lengths and depths.

    A cell is the mean of its needles; grey and hatched: the arm could not be run there; empty: there are no results.

    Args:
        rows: Of needles: their facts name length and depth.
        path: The file to write.
        title: Stands above the panels.

    Raises:
        ModelError: matplotlib is not installed.
        BudgetError: There is nothing to draw.
        StoreError: The file cannot be written.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(row["arm"] for row in rows))
    cells = {arm: by_cell(row for row in rows if row["arm"] == arm) for arm in arms}
    lengths = sorted({length for found in cells.values() for length, _ in found})
    depths = sorted({depth for found in cells.values() for _, depth in found})
    if not lengths:
        raise BudgetError("there are no results on needles to draw.")
    across = min(_COLUMNS, len(arms))
    down = -(-len(arms) // across)
    width = across * (_CELL * max(3, len(lengths)) + 0.9) + 1.1
    title = textwrap.fill(title, int(width * 11))
    height = down * (_CELL * max(2, len(depths)) + 0.75) + 0.25 * len(title.splitlines()) + 0.6
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False)
    colours = ScalarMappable(Normalize(0.0, 1.0), COLOURS)
    for number, panel in enumerate(panels.flat):
        if number >= len(arms):
            panel.set_axis_off()
            continue
        _panel(panel, cells[arms[number]], lengths, depths, colours)
        panel.set_title(arms[number])
        if number + across >= len(arms):
            panel.set_xlabel("context, tokens")
        if number % across == 0:
            panel.set_ylabel("depth, %")
    figure.colorbar(colours, ax=panels, label="score", shrink=min(1.0, 2.5 / height + 0.2), pad=0.02)
    if title:
        figure.suptitle(title, fontsize=10)
    if not all(scores for found in cells.values() for scores in found.values()):
        figure.supxlabel("hatched: cannot be run on such a context", fontsize=8)
    try:
        figure.savefig(path, metadata={"Software": None})
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}): give another place.") from error


def _panel(
    panel: Any, cells: dict[tuple[int, int], list[float]], lengths: list[int], depths: list[int], colours: Any
) -> None:
    """Draw an arm's cells."""
    from matplotlib.patches import Rectangle

    for x, length in enumerate(lengths):
        for y, depth in enumerate(depths):
            if (scores := cells.get((length, depth))) is None:
                continue
            corner = (x - 0.5, y - 0.5)
            if not scores:
                panel.add_patch(Rectangle(corner, 1, 1, facecolor="0.85", edgecolor="0.6", hatch="///", linewidth=0))
                continue
            mean = sum(scores) / len(scores)
            panel.add_patch(Rectangle(corner, 1, 1, facecolor=colours.to_rgba(mean), edgecolor="white"))
            ink = "white" if mean < _DARK else "black"
            panel.text(x, y, f"{mean:.2f}", ha="center", va="center", color=ink, fontsize=8)
    panel.set_xlim(-0.5, len(lengths) - 0.5)
    panel.set_ylim(len(depths) - 0.5, -0.5)
    panel.set_xticks(range(len(lengths)), [length_name(length) for length in lengths])
    panel.set_yticks(range(len(depths)), [str(depth) for depth in depths])
    panel.tick_params(length=0)
