"""A real model, small and weak: what it reads and cites is right, even where its words are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import fetched_model
from li_helpers import DOCUMENTS
from llama_index.core import SimpleDirectoryReader
from llama_index.indices.managed.infinipot import InfiniPotIndex
from llama_index.llms.infinipot import InfiniPotLLM
from llama_index.readers.infinipot import InfiniPotPDFReader

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("closed_loop")]


@pytest.fixture(scope="module")
def index() -> InfiniPotIndex:
    llm = InfiniPotLLM(
        fetched_model("smollm2-135m"), budget=2048, max_new_tokens=24, recall=400, device="cpu", dtype="float32"
    )
    files = [DOCUMENTS / "merrow_ferry.pdf"]
    extractor = {".pdf": InfiniPotPDFReader()}
    docs = SimpleDirectoryReader(input_files=files, file_extractor=extractor, raise_on_error=True).load_data()
    return InfiniPotIndex.from_documents(docs, llm=llm)


@pytest.mark.parametrize(
    ("question", "words", "label"),
    [
        ("Who took the place of Ingrid Vasey as skipper?", "Tom Ellery", "1"),
        ("What did the second-hand engine cost?", "68,900 pounds", "2"),
        ("When was the waiting room at Merrow Quay built?", "1931", "3"),
    ],
)
def test_the_passage_with_the_answer_is_recalled(index: InfiniPotIndex, question: str, words: str, label: str) -> None:
    (held,) = [n for n in index.as_retriever().retrieve(question) if words in n.node.text.replace("\n", " ")]
    assert held.node.metadata["page_label"] == label
    assert held.node.metadata["file_name"] == "merrow_ferry.pdf"


QUESTION = "What did the second-hand engine cost?"


def test_the_same_answer_streamed_and_from_the_persisted_index(index: InfiniPotIndex, tmp_path: Path) -> None:
    response: Any = index.as_query_engine().query(QUESTION)
    assert len(response.response.split()) > 1
    assert {n.node.metadata["page_label"] for n in response.source_nodes} & {"2"}
    index.storage_context.persist(tmp_path)
    opened = InfiniPotIndex.load(tmp_path, llm=index.llm)
    assert str(opened.as_query_engine(streaming=True, citations=False).query(QUESTION)) == response.response
