"""A LlamaIndex user's choice: vectors, BM25, both fused, a summary index, or InfiniPotIndex, over PDFs.

    python benchmarks/rag.py ask --data DIR --embeddings DIR --out rows.jsonl [--arms ours,ours-3000,bm25,vector,fused]
    python benchmarks/rag.py ask --questions hard --embeddings DIR --out rows.jsonl
    python benchmarks/rag.py report --out rows.jsonl

The same weights answer everywhere, with the same prompt, greedily, from about the same number of tokens: 1,024 recalled
ones, or four chunks of 256 (LlamaIndex's own splitter, overlap 32); `ours-N` recalls N. The questions and how answers
are scored: `rag_questions.py`. `pages` are 39 about a PDF of 25 pages, and tell the page of their answer; `hard` are
about two PDFs in one index: lists, counts, summaries, and two facts that stand pages apart.

Rows hold no questions and no answers, are appended to --out, and what is there of the same model, dtype and threads is
not asked again; rows of another stand in tables of their own. `tree` (SummaryIndex with tree_summarize) reads
everything for every question: give it --limit 5, questions of each kind.

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

import numpy as np
import rag_questions
import retrievers
import torch
from followup_data import f1
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
from rag_questions import Question

from infinipot_llm.answering.prompt import BEFORE_DOCUMENT, BEFORE_QUESTION, SYSTEM
from infinipot_llm.evaluation.statistics import paired, share

CHUNK, OVERLAP, CHUNKS = 256, 32, 4
ANSWER_TOKENS = {"pages": 48, "hard": 256}
"""Per set of questions: lists and summaries need room."""


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


def engine_of(arm: str, documents: list[Any], llm: InfiniPotLLM, embeddings: Path) -> tuple[Any, dict[str, float]]:
    """Build an engine, and tell how long that took and what it takes on disk."""
    started = time.perf_counter()
    context = StorageContext.from_defaults()
    if is_ours(arm):
        index: Any = InfiniPotIndex.from_documents(documents, llm=llm, storage_context=context)
        tokens = arm.removeprefix("ours-")
        recall = int(tokens) if tokens != arm else CHUNK * CHUNKS  # as many as the others
        made = index.as_query_engine(max_new_tokens=llm.max_new_tokens, recall=recall)
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
            fused: dict[str, Any] = {
                "similarity_top_k": CHUNKS,
                "num_queries": 1,
                "mode": "reciprocal_rerank",
                "use_async": False,
            }
            found = dense if arm == "vector" else QueryFusionRetriever([dense, found], llm=llm, **fused)
        made = RetrieverQueryEngine(found, get_response_synthesizer(llm, text_qa_template=template()))
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        context.persist(folder)
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return made, {"build_seconds": round(seconds, 1), "bytes": size}


def is_ours(arm: str) -> bool:
    """Tell whether an arm is InfiniPotIndex, however much it recalls."""
    return arm.partition("-")[0] == "ours"


def ask(args: argparse.Namespace) -> None:
    done = read_rows(args.out) if args.out.exists() else []
    same = {"questions": args.questions, "model": Path(args.model).name, "dtype": args.dtype, "threads": args.threads}
    asked = {(r["arm"], r["number"]) for r in done if "number" in r and same.items() <= r.items()}
    if {*args.arms} & {"vector", "fused"} and args.embeddings is None:
        raise SystemExit("the arms vector and fused need --embeddings DIR, the folder with all-MiniLM-L6-v2.")
    paths, questions = rag_questions.load(args.questions, args.data)
    wanted = first_of_each_kind(questions, args.limit)
    torch.set_num_threads(args.threads)
    settings: dict[str, Any] = {
        "model": args.model,
        "dtype": args.dtype,
        "max_new_tokens": ANSWER_TOKENS[args.questions],
    }
    cited = InfiniPotLLM(budget=4096, store=False, **settings)
    llm = InfiniPotLLM(budget=4096, store=False, citations=False, **settings)
    Settings.tokenizer = llm.tokenize
    documents = [page for path in paths for page in InfiniPotPDFReader().load_data(path)]
    with args.out.open("a") as out:

        def write(row: dict[str, Any]) -> None:
            out.write(json.dumps({**same, **row}) + "\n")
            out.flush()

        for arm in args.arms:
            left = [n for n in wanted if (arm, n) not in asked]
            if not left:
                continue
            engine, cost = engine_of(arm, documents, cited if is_ours(arm) else llm, args.embeddings)
            write({"arm": arm, **cost})
            for number in left:
                write({"arm": arm, "number": number, **answered(arm, questions[number], engine.query)})


def first_of_each_kind(questions: list[Question], limit: int) -> list[int]:
    """Return the numbers of the first questions of each kind."""
    numbers: list[int] = []
    for kind in rag_questions.KINDS:
        numbers += [n for n, question in enumerate(questions) if question.kind == kind][:limit]
    return numbers


def answered(arm: str, question: Question, query: Callable[[str], Any]) -> dict[str, Any]:
    """Ask one question, and score the answer."""
    started = time.perf_counter()
    response = query(question.question)
    seconds = time.perf_counter() - started
    sources = [s.node.metadata for s in response.source_nodes]
    told = [s for s in sources if s.get("cited")] if is_ours(arm) else sources
    row: dict[str, Any] = {
        "kind": question.kind, "score": round(rag_questions.score(question, str(response)), 4),
        "words": len(str(response).split()), "seconds": round(seconds, 2),
        "found": round(rag_questions.pages_found(question, [(s["file_name"], int(s["page"])) for s in sources]), 4),
    }  # fmt: skip
    if question.kind == "page":
        row |= {"f1": round(f1(str(response), question.answers), 4)}
        row |= {"pages": [int(s["page"]) for s in told[:3]], "gold": list(question.pages)}
    return row


def report(rows: list[dict[str, Any]]) -> None:
    """Print the tables of the sets of questions that rows are there of: one for each model, dtype and threads."""
    for name, table in (("pages", report_pages), ("hard", report_hard)):
        of_set = [row for row in rows if row["questions"] == name]
        for about in dict.fromkeys(heading(row) for row in of_set):
            some = [row for row in of_set if heading(row) == about]
            if any("number" in row for row in some):
                print(f"\nQuestions: {name}{about}\n")
                table(some)


def heading(row: dict[str, Any]) -> str:
    """Return what a row was measured with; old rows do not say."""
    return "; {model}, {dtype}, {threads} threads".format(**row) if "model" in row else ""


def report_pages(rows: list[dict[str, Any]]) -> None:
    """Print a table: answers with intervals, pages, and what it costs."""
    print(
        "| | n | answers that contain the reference | ours minus this | F1 | first page right, of correct answers",
        end="",
    )
    print(" | one of three | seconds to build | per question | MB on disk |\n|" + "---|" * 10)
    for arm in dict.fromkeys(r["arm"] for r in rows):
        some = [r for r in rows if r["arm"] == arm and "number" in r]
        if not some:
            continue
        right = [r for r in some if r["score"]]
        pages = ["-", "-"]
        for place, most in enumerate((1, 3)):
            if right:
                right_first = share(
                    [bool({*r["pages"][:most]} & {*r["gold"]}) for r in right], [str(r["number"]) for r in right]
                )
                pages[place] = "{:.2f} [{:.2f}, {:.2f}]".format(*right_first)
        seconds, megabytes = cost_of(arm, rows)
        print(
            f"| {arm} | {len(some)} | {scored(some)} | {against_ours(some, rows)} | "
            f"{np.mean([r['f1'] for r in some]):.3f} | {pages[0]} | {pages[1]} | {seconds} | "
            f"{np.median([r['seconds'] for r in some]):.1f} | {megabytes} |"
        )


def report_hard(rows: list[dict[str, Any]]) -> None:
    """Print a table: scores by kind with intervals, and how much of the evidence was among the sources."""
    print("| kind | | n | score | ours minus this | evidence pages among the sources | words | seconds per question |")
    print("|" + "---|" * 8)
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    for kind in rag_questions.KINDS:
        of_kind = [r for r in rows if r.get("kind") == kind]
        for arm in arms:
            some = [r for r in of_kind if r["arm"] == arm]
            if some:
                print(
                    f"| {kind} | {arm} | {len(some)} | {scored(some)} | {against_ours(some, of_kind)} | "
                    f"{np.mean([r['found'] for r in some]):.2f} | {np.median([r['words'] for r in some]):.0f} | "
                    f"{np.median([r['seconds'] for r in some]):.1f} |"
                )
    print("\n| | seconds to build | MB on disk |\n|---|---|---|")
    for arm in arms:
        print("| {} | {} | {} |".format(arm, *cost_of(arm, rows)))


def scored(rows: list[dict[str, Any]]) -> str:
    """Return the mean score with its interval."""
    mean, low, high = share([r["score"] for r in rows], [str(r["number"]) for r in rows])
    return f"{mean:.3f} [no interval]" if np.isnan(low) else f"{mean:.3f} [{low:.2f}, {high:.2f}]"


def against_ours(some: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """Return by how much `ours` scores higher on the questions that both were asked, with its interval."""
    ours = {r["number"]: r["score"] for r in rows if r["arm"] == "ours" and "number" in r}
    both = [(ours[r["number"]], r["score"], str(r["number"])) for r in some if r["number"] in ours]
    if not both or some[0]["arm"] == "ours":
        return ""
    values, others, groups = map(list, zip(*both, strict=True))
    mean, low, high = paired(values, others, groups)
    return f"{mean:+.3f} [no interval]" if np.isnan(low) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def cost_of(arm: str, rows: list[dict[str, Any]]) -> tuple[float, str]:
    """Return what building took: seconds, and megabytes on disk."""
    built = next(r for r in rows if r["arm"] == arm and "bytes" in r)
    return built["build_seconds"], f"{built['bytes'] / 1e6:.1f}"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; those of before there were two sets are about pages."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row.setdefault("questions", "pages")
        if "contains" in row:
            row.setdefault("score", float(row["contains"]))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ask", "report"])
    parser.add_argument("--questions", choices=rag_questions.SETS, default="pages")
    parser.add_argument("--data", type=Path, help="folder with pdf/ and qa/; --questions hard needs none")
    parser.add_argument("--embeddings", type=Path, help="folder with all-MiniLM-L6-v2")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--arms", type=lambda s: s.split(","), default=["ours", "bm25", "vector", "fused"])
    parser.add_argument("--limit", type=int, default=39, help="questions per arm and kind")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.what == "ask":
        ask(args)
    else:
        report(read_rows(args.out))


if __name__ == "__main__":
    main()
