"""The notebook of the examples: it runs from top to bottom, and what is committed came from a real model."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from notebooks import EXAMPLES, executed, said

NOTEBOOK = EXAMPLES / "llama_index_pdf_query_engine.ipynb"


def test_it_runs(word_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFINIPOT_MODEL", os.environ.get("INFINIPOT_MODEL", str(word_model)))
    monkeypatch.setenv("INFINIPOT_STORE", str(tmp_path / "store"))
    told = said(executed(NOTEBOOK))
    assert "43 pages of ['hollin_valley.pdf', 'merrow_ferry.pdf']" in told
    assert "(6, '3')" in told
    assert "passages were recalled:" in told
    assert "['.infinipot', '.infinipot', 'default__vector_store.json', 'docstore.json'" in told
    assert "0 of 43 pages changed" in told
    assert "['hollin_valley.pdf']" in told
    assert not (EXAMPLES / "store").exists()


def test_the_committed_outputs_come_from_the_default_model() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert all(c["execution_count"] for c in notebook.cells if c["cell_type"] == "code")
    told = said(notebook)
    assert told.count("412,650 crowns") >= 2  # before it was persisted, and after
    assert 'hollin_valley.pdf, page 15: "' in told
    assert "Tom Ellery" in told
    assert str(Path.home()) not in told
