"""The quickstart notebook: it runs from top to bottom, and what is committed came from a real model."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from notebooks import EXAMPLES, executed, said

NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def test_it_runs(word_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFINIPOT_MODEL", str(word_model))
    monkeypatch.setenv("INFINIPOT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = executed(NOTEBOOK)
    texts = "\n".join(str(o) for cell in notebook.cells for o in cell.get("outputs", ()))
    assert "39 pages" in texts
    assert "reading:" in texts  # the bar
    assert "tokens read" in texts  # an answer shows itself
    assert texts.count("True\\n") == 1  # what was loaded says what was saved
    assert len(list((tmp_path / "store").glob("*.infinipot"))) == 1


def test_the_committed_outputs_come_from_the_default_model() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(c["execution_count"] for c in notebook.cells if c["cell_type"] == "code")
    shown = said(notebook)
    assert "'stderr'" not in str(notebook)
    assert "412,650 crowns" in str(notebook)
    assert shown.rstrip().endswith("True")
    assert str(Path.home()) not in str(notebook)
