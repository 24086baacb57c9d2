"""The notebook of the examples: it runs from top to bottom, and what is committed came from a real model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import CHAT, tiny_model
from li_helpers import DOCUMENTS, EXAMPLES
from nbclient import NotebookClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

NOTEBOOK = EXAMPLES / "llama_index_pdf_query_engine.ipynb"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with words for tokens, so that two reports are read in seconds."""
    folder = tmp_path_factory.mktemp("model")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    core.train([str(DOCUMENTS / "hollin_valley.md")], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    model = tiny_model("llama", vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=8192)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    return folder


def outputs(notebook: Any) -> str:
    texts = []
    for cell in notebook.cells:
        for out in cell.get("outputs", ()):
            assert out["output_type"] != "error", out
            texts.append(out.get("text") or out.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)


def test_it_runs(model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFINIPOT_MODEL", os.environ.get("INFINIPOT_MODEL", str(model_folder)))
    monkeypatch.setenv("INFINIPOT_STORE", str(tmp_path / "store"))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES)}}
    ).execute()
    said = outputs(notebook)
    assert "43 pages of ['hollin_valley.pdf', 'merrow_ferry.pdf']" in said
    assert "(6, '3')" in said
    assert "passages were recalled:" in said
    assert "['.infinipot', '.infinipot', 'default__vector_store.json', 'docstore.json'" in said
    assert "0 of 43 pages changed" in said
    assert "['hollin_valley.pdf']" in said
    assert not (EXAMPLES / "store").exists()


def test_the_committed_outputs_come_from_the_default_model() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert all(c["execution_count"] for c in notebook.cells if c["cell_type"] == "code")
    said = outputs(notebook)
    assert said.count("412,650 crowns") >= 2  # before it was persisted, and after
    assert 'hollin_valley.pdf, page 15: "' in said
    assert "Tom Ellery" in said
    assert str(Path.home()) not in said
