"""Executing the notebooks of the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def executed(notebook: Path) -> Any:
    """Run a notebook from top to bottom where it lies, and return it with its outputs."""
    found = nbformat.read(notebook, as_version=4)
    NotebookClient(found, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    return found


def said(notebook: Any) -> str:
    """Return the text of all outputs; an error among them fails the test."""
    texts = []
    for cell in notebook.cells:
        for out in cell.get("outputs", ()):
            assert out["output_type"] != "error", out
            texts.append(out.get("text") or out.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)
