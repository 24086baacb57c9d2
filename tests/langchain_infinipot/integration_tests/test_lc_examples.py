"""The examples run from their first line to their last, with a random model whose tokens are as long as usual ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from notebooks import EXAMPLES, executed, said

NOTEBOOK = EXAMPLES / "langchain_pdf_chain.ipynb"


@pytest.fixture(autouse=True)
def surroundings(word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel and the script inherit."""
    monkeypatch.setenv("INFINIPOT_MODEL", str(word_model))
    monkeypatch.setenv("INFINIPOT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs() -> None:
    told = said(executed(NOTEBOOK))
    assert "'cache_creation': 0" in told  # the second question reads nothing
    assert "tool: " in told


def test_the_notebooks_committed_outputs_are_those_of_a_real_run() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert outputs
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert "412,650" in str(outputs)  # what the pump cost, by the document
    assert str(Path.home()) not in str(outputs)


def test_the_script_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "langchain_pdf_chain.py"), str(EXAMPLES / "documents" / "carbon.txt"), "Who?"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "cache_creation" in done.stdout
    assert "(streamed)" in done.stdout
