"""A LlamaIndex user's choice: vectors, BM25, both fused, a summary index, or InfiniPotIndex, over one PDF.

    python benchmarks/rag.py ask --data DIR --embeddings DIR --out rows.jsonl [--arms ours,bm25,vector,fused,tree]
    python benchmarks/rag.py report --out rows.jsonl

The same weights answer everywhere, with the same prompt, greedily, from about the same number of tokens: 1,024 recalled
ones, or four chunks of 256 (LlamaIndex's own splitter, overlap 32). The 39 questions about a PDF of 25 pages tell the
page of their answer. Rows hold no questions and no answers, are appended to --out, and what is there is not asked
again; `tree` (SummaryIndex with tree_summarize) reads the whole PDF for every question: give it --limit 5.

A page counts as right when the first source node (of `ours`, the first cited one) is on it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import followup_data as data
import numpy as np
import retrievers
import torch
from llama_index.core import Settings, StorageContext, SummaryIndex, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.callbacks import CallbackManager
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.indices.managed.infinipot import InfiniPotIndex
from llama_index.llms.infinipot import InfiniPotLLM
from llama_index.readers.infinipot import InfiniPotPDFReader

from infinipot_llm.answering.prompt import BEFORE_DOCUMENT, BEFORE_QUESTION, SYSTEM

CHUNK, OVERLAP, CHUNKS = 256, 32, 4
ANSWER_TOKENS = 48


class MiniLMEmbedding(BaseEmbedding):
    """all-MiniLM-L6-v2, from a folder."""

    _encoder: Any = None

    def __init__(self, folder: Path) -> None:
        super().__init__(model_name="all-MiniLM-L6-v2")
        self._encoder = retrievers.MiniLM(folder)

    def _get_text_embedding(self, text: str) -> list[float]:
        return list(map(float, self._encoder.encode([text])[0]))

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class BM25Retriever(BaseRetriever):
    """Chunks by BM25."""

    def __init__(self, nodes: list[Any]) -> None:
        self._nodes = nodes
        self._index = retrievers.BM25([node.get_content() for node in nodes])
        super().__init__(CallbackManager())

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        scores = np.asarray(self._index.rank(query_bundle.query_str))
        best = np.argsort(-scores, kind="stable")[:CHUNKS]
        return [NodeWithScore(node=self._nodes[i], score=float(scores[i])) for i in best]


def template() -> ChatPromptTemplate:
    """Return the prompt that InfiniPot's own engine uses."""
    user = f"{BEFORE_DOCUMENT}{{context_str}}{BEFORE_QUESTION}{{query_str}}"
    said = [ChatMessage(SYSTEM, role=MessageRole.SYSTEM), ChatMessage(user, role=MessageRole.USER)]
    return ChatPromptTemplate(said)


def engine_of(arm: str, documents: list[Any], llm: InfiniPotLLM, embeddings: Path, rows: list[dict[str, Any]]) -> Any:
    """Build an engine, and note how long that took and what it takes on disk."""
    started = time.perf_counter()
    context = StorageContext.from_defaults()
    if arm == "ours":
        index: Any = InfiniPotIndex.from_documents(documents, llm=llm, storage_context=context)
        made = index.as_query_engine(max_new_tokens=ANSWER_TOKENS)
    elif arm == "tree":
        small = llm.model_copy(update={"context_window": 4096})
        index = SummaryIndex.from_documents(documents, storage_context=context)
        made = index.as_query_engine(small, response_mode="tree_summarize")
    else:
        nodes = SentenceSplitter(chunk_size=CHUNK, chunk_overlap=OVERLAP).get_nodes_from_documents(documents)
        found: Any = BM25Retriever(nodes)
        if arm != "bm25":
            index = VectorStoreIndex(nodes, embed_model=MiniLMEmbedding(embeddings), storage_context=context)
            dense = index.as_retriever(similarity_top_k=CHUNKS)
            fused = {"similarity_top_k": CHUNKS, "num_queries": 1, "mode": "reciprocal_rerank", "use_async": False}
            found = dense if arm == "vector" else QueryFusionRetriever([dense, found], llm=llm, **fused)
        made = RetrieverQueryEngine(found, get_response_synthesizer(llm, text_qa_template=template()))
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        context.persist(folder)
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    rows.append({"arm": arm, "build_seconds": round(seconds, 1), "bytes": size})
    return made


def ask(args: argparse.Namespace) -> None:
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    asked = {(r["arm"], r["number"]) for r in done if "number" in r}
    torch.set_num_threads(args.threads)
    llm = InfiniPotLLM(model=args.model, budget=4096, max_new_tokens=ANSWER_TOKENS, store=False, citations=False)
    cited = InfiniPotLLM(model=args.model, budget=4096, max_new_tokens=ANSWER_TOKENS, store=False)
    Settings.tokenizer = llm.tokenize
    documents = InfiniPotPDFReader().load_data(args.data / "pdf" / "alps_wiki.pdf")
    lines = (args.data / "qa" / "alps_wiki.questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines][: args.limit]
    with args.out.open("a") as out:

        def write(row: dict[str, Any]) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()

        for arm in args.arms:
            left = [n for n in range(len(questions)) if (arm, n) not in asked]
            if not left:
                continue
            built: list[dict[str, Any]] = []
            engine = engine_of(arm, documents, cited if arm == "ours" else llm, args.embeddings, built)
            write(built[0])
            for number in left:
                write(answered(arm, number, questions[number], engine.query))


def answered(arm: str, number: int, question: dict[str, Any], query: Callable[[str], Any]) -> dict[str, Any]:
    """Ask one question."""
    started = time.perf_counter()
    response = query(question["question"])
    seconds = time.perf_counter() - started
    sources = [s.node.metadata for s in response.source_nodes]
    told = [s for s in sources if s.get("cited")] if arm == "ours" else sources
    references = [question["answer"]]
    return {
        "arm": arm, "number": number, "contains": data.contains(str(response), references),
        "f1": round(data.f1(str(response), references), 4), "words": len(str(response).split()),
        "pages": [int(s["page"]) for s in told[:3]], "gold": question["page_1indexed"], "seconds": round(seconds, 2),
    }  # fmt: skip


def report(rows: list[dict[str, Any]]) -> None:
    """Print a table: answers with intervals, pages, and what it costs."""
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    ours = {r["number"]: r for r in rows if r["arm"] == "ours" and "number" in r}
    print(
        "| | n | answers that contain the reference | ours minus this | F1 | first page right, of correct answers",
        end="",
    )
    print(" | one of three | seconds to build | per question | MB on disk |\n|" + "---|" * 10)
    for arm in arms:
        some = [r for r in rows if r["arm"] == arm and "number" in r]
        built = next(r for r in rows if r["arm"] == arm and "bytes" in r)
        if not some:
            continue
        mean, low, high = data.share([r["contains"] for r in some], [str(r["number"]) for r in some])
        both = [(ours[r["number"]]["contains"], r["contains"], str(r["number"])) for r in some if r["number"] in ours]
        difference = ""
        if arm != "ours" and both:
            difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*data.paired(*map(list, zip(*both, strict=True))))
        right = [r for r in some if r["contains"]]
        pages = ["-", "-"]
        for place, most in enumerate((1, 3)):
            if right:
                share = data.share(
                    [bool({*r["pages"][:most]} & {*r["gold"]}) for r in right], [str(r["number"]) for r in right]
                )
                pages[place] = "{:.2f} [{:.2f}, {:.2f}]".format(*share)
        print(
            f"| {arm} | {len(some)} | {mean:.3f} [{low:.2f}, {high:.2f}] | {difference} | "
            f"{np.mean([r['f1'] for r in some]):.3f} | {pages[0]} | {pages[1]} | {built['build_seconds']} | "
            f"{np.median([r['seconds'] for r in some]):.1f} | {built['bytes'] / 1e6:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ask", "report"])
    parser.add_argument("--data", type=Path, help="folder with pdf/ and qa/")
    parser.add_argument("--embeddings", type=Path, help="folder with all-MiniLM-L6-v2")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--arms", type=lambda s: s.split(","), default=["ours", "bm25", "vector", "fused"])
    parser.add_argument("--limit", type=int, default=39, help="questions per arm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "ask":
        ask(args)
    else:
        report([json.loads(line) for line in args.out.read_text().splitlines()])


if __name__ == "__main__":
    main()
