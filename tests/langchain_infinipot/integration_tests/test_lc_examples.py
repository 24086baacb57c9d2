"""The examples run from their first line to their last, with a random model whose tokens are as long as usual ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import CHAT, tiny_model
from nbclient import NotebookClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "langchain_pdf_chain.ipynb"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of the kind that the examples load by name."""
    folder = tmp_path_factory.mktemp("model")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train([str(EXAMPLES / "documents" / "hollin_valley.md")], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    random = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=8192)
    random.generation_config.eos_token_id = tokenizer.eos_token_id
    random.generation_config.pad_token_id = tokenizer.pad_token_id
    random.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def surroundings(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel and the script inherit."""
    monkeypatch.setenv("INFINIPOT_MODEL", str(model))
    monkeypatch.setenv("INFINIPOT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = len(notebook.cells)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES)}}
    ).execute()
    said = ["".join(o.get("text", "") + str(o.get("data", "")) for o in c.get("outputs", [])) for c in notebook.cells]
    assert len(said) == before
    assert any("'cache_creation': 0" in text for text in said)  # the second question reads nothing
    assert any("tool: " in text for text in said)


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
