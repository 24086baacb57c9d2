"""Query engine and retriever: one answer and the same sources whichever way one asks."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from li_helpers import mill_pages, page, river, shown, tiny_llm
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import Document, NodeWithScore, QueryBundle, TextNode
from llama_index.indices.managed.infinipot import (
    InfiniPotIndex,
    InfiniPotIndexError,
    InfiniPotQueryEngine,
    InfiniPotRetriever,
)
from llama_index.indices.managed.infinipot.nodes import Source, cited_first, node_of, nodes_of, passages_in

from infinipot_llm import Document as OurDocument
from infinipot_llm.errors import QuestionError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.recall import Finder, Passage

pytestmark = pytest.mark.usefixtures("closed_loop")

QUESTION = "When did mill number 4 burn?"


@pytest.fixture(scope="module")
def index() -> InfiniPotIndex:
    return InfiniPotIndex.from_documents([*mill_pages(), river()], llm=tiny_llm())


def test_base_classes() -> None:
    assert BaseQueryEngine in inspect.getmro(InfiniPotQueryEngine)
    assert BaseRetriever in inspect.getmro(InfiniPotRetriever)


async def every_way(index: InfiniPotIndex, question: str, **options: Any) -> dict[str, tuple[str, list[Any]]]:
    """Ask in every way there is; return answers and sources."""
    whole, streaming = index.as_query_engine(**options), index.as_query_engine(streaming=True, **options)
    ways = {}
    r: Any = whole.query(question)
    ways["query"] = (r.response, r.source_nodes)
    r = await whole.aquery(question)
    ways["aquery"] = (r.response, r.source_nodes)
    r = streaming.query(question)
    ways["stream"] = ("".join(r.response_gen), r.source_nodes)
    r = await streaming.aquery(question)
    ways["astream"] = ("".join([piece async for piece in r.async_response_gen()]), r.source_nodes)
    r = index.as_chat_engine(**options).chat(question)
    ways["chat"] = (r.response, r.source_nodes)
    r = await index.as_chat_engine(**options).achat(question)
    ways["achat"] = (r.response, r.source_nodes)
    r = index.as_chat_engine(**options).stream_chat(question)
    ways["stream_chat"] = ("".join(r.response_gen), r.source_nodes)
    r = await index.as_chat_engine(**options).astream_chat(question)
    ways["astream_chat"] = ("".join([piece async for piece in r.async_response_gen()]), r.source_nodes)
    return ways


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (QUESTION, {}),
        ("  How far did the river rise? ", {}),
        (QUESTION, {"recall": 64, "max_new_tokens": 5}),
        ("How far did the river rise?", {"followup": "reread"}),
    ],
)
async def test_parity(index: InfiniPotIndex, question: str, options: dict[str, Any]) -> None:
    ways = await every_way(index, question, **options)
    answer, sources = ways["query"]
    assert answer
    for way, (said, nodes) in ways.items():
        assert said == answer, way
        assert shown(nodes) == shown(sources), way
    if "followup" in options:
        assert all("cited" in n.node.metadata for n in sources)
        return
    retriever = index.as_retriever(recall=options.get("recall"))
    if options.get("max_new_tokens"):
        retriever = index.as_query_engine(**options).retriever
    for found in (retriever.retrieve(question), await retriever.aretrieve(question)):
        assert sorted((n.node.node_id, n.node.text, n.score) for n in found) == sorted(
            (n.node.node_id, n.node.text, n.score) for n in sources
        )


async def test_parity_from_the_pot() -> None:
    index = InfiniPotIndex.from_documents([river()], llm=tiny_llm())
    ways = await every_way(index, "How far did the river rise?", followup="reuse")
    assert len({said for said, _ in ways.values()}) == 1
    assert all(shown(nodes) == shown(ways["query"][1]) for _, nodes in ways.values())


@pytest.mark.parametrize("question", [QUESTION, "How far did the river rise?", "Who moved to town 2?"])
def test_the_sources_are_what_was_read(index: InfiniPotIndex, question: str) -> None:
    response = index.as_query_engine().query(question)
    memory, _ = index.memory_and_sources()
    direct = memory.ask(question)
    assert response.response == direct.text
    told = response.metadata["infinipot"]
    assert told["recalled_tokens"] == direct.usage.recalled_tokens
    assert [c["quote"] for c in told["citations"]] == [c.quote for c in direct.citations]
    length = sum(len(n.node.text) for n in response.source_nodes)  # one token per byte
    assert 0.9 * told["recalled_tokens"] <= length <= told["recalled_tokens"]
    for n in response.source_nodes:
        data = n.node.metadata
        text = index.document(n.node.ref_doc_id).text
        assert text[data["start_char_idx"] : data["end_char_idx"]] == n.node.text == n.node.get_content()
        assert n.node.start_char_idx == data["start_char_idx"]
        assert n.score == pytest.approx(data["score"], abs=1e-4)
        assert data["file_name"] == ("mill.pdf" if "mill" in n.node.ref_doc_id else "river")


def test_pages_and_labels_are_right(index: InfiniPotIndex) -> None:
    nodes = index.as_retriever(recall=500).retrieve("Which mills burned?")
    mills = [n.node for n in nodes if n.node.metadata["file_name"] == "mill.pdf"]
    assert len(mills) >= 4
    for node in mills:
        (number,) = {w for w in node.text.split() if w.isdigit() and len(w) == 1} or {str(node.metadata["page"])}
        assert node.metadata["page_label"] == f"A-{number}"
        assert node.metadata["page"] == int(number)


def test_the_best_come_first(index: InfiniPotIndex) -> None:
    in_document_order = []
    for question in (QUESTION, "How far did the river rise?", "Who moved to town 2?"):
        nodes = index.as_retriever(recall=200).retrieve(question)
        scores = [n.score for n in nodes]
        assert scores == sorted(scores, reverse=True)
        starts = [n.node.metadata["token_start"] for n in nodes]
        in_document_order.append(starts == sorted(starts))
    assert not all(in_document_order)


def test_white_space_around_a_passage_is_no_part_of_its_source(index: InfiniPotIndex) -> None:
    memory, sources = index.memory_and_sources()
    whole = sources["river"].document.text
    gap = whole.index("\n\n")
    first, end = memory.text.tokens_in(1, gap, gap + 12)
    (node,) = nodes_of([Passage(first, end, 1.0)], memory.text, sources)
    assert node.node.text == whole[gap + 2 : gap + 12].strip()
    assert node.node.metadata["start_char_idx"] == gap + 2
    assert passages_in([node]) == [Passage(first, end, 1.0)]


def test_a_passage_that_begins_with_nothing_at_the_end_of_another_document_keeps_its_place() -> None:
    """Its node is of the document that it shows, and the answer reads the very same tokens."""
    weir = Document(text="The weir broke. . . . . . . .", id_="weir")
    index = InfiniPotIndex.from_documents([weir, river()], llm=tiny_llm())
    memory, sources = index.memory_and_sources()
    border = int(memory.text.first[1])
    passage = Passage(border - 6, border + 30, 1.0)
    nodes = nodes_of([passage], memory.text, sources)
    assert [node.node.ref_doc_id for node in nodes] == ["river"]
    assert passages_in(nodes, memory.text, sources) == [passage]


def test_page_numbers_at_a_border_are_no_sources() -> None:
    pages = [
        page(i, f"{i}\n\nThe mill number {i} burned in 190{i}, on a day in June." if i != 3 else "3")
        for i in range(1, 6)
    ]
    index = InfiniPotIndex.from_documents(pages, llm=tiny_llm())
    nodes = index.as_retriever(recall=600).retrieve("Which?")
    assert [n.node.metadata["page"] for n in nodes] == [1, 2, 4, 5]
    memory, _ = index.memory_and_sources()
    assert passages_in(nodes) == memory.passages("Which?", recall=600)
    assert passages_in(nodes[1:2]) != passages_in(nodes)
    alone = InfiniPotIndex.from_documents([page(1, "3"), page(2, "7")], llm=tiny_llm())
    assert [n.node.text for n in alone.as_retriever().retrieve("Which?")] == ["3", "7"]


def test_cited_passages_come_first(index: InfiniPotIndex) -> None:
    for question in (QUESTION, "How far did the river rise?", "Who moved to town 2?", "Which page says so?"):
        response = index.as_query_engine().query(question)
        cited = ["cited" in n.node.metadata for n in response.source_nodes]
        assert cited == sorted(cited, reverse=True)
        citations = response.metadata["infinipot"]["citations"]
        if citations:
            first = response.source_nodes[0].node
            assert first.metadata["cited"] == citations[0]["quote"]
            assert first.metadata["citation_score"] == citations[0]["score"]
            assert first.metadata["page_label"] == (citations[0]["page_label"] or str(citations[0]["page"]))
            assert citations[0]["quote"].split()[0] in first.text
            return
    pytest.fail("no question was answered with a citation: choose others")


def test_several_documents_share_one_budget(index: InfiniPotIndex) -> None:
    response = index.as_query_engine(recall=200).query("Which mill burned, and how far did the river rise?")
    assert response.metadata["infinipot"]["recalled_tokens"] <= 200
    assert {d["name"] for d in response.metadata["infinipot"]["documents"]} == {"mill.pdf", "river"}
    everything = index.as_retriever(recall=10_000).retrieve("Which?")
    assert {n.node.ref_doc_id for n in everything} == {"/nowhere/mill.pdf", "river"}


def read_by(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by the passages that memories are asked to answer from."""
    given: list[Any] = []
    real = DocumentMemory.answer

    def spy(self: DocumentMemory, *args: Any, **options: Any) -> Any:
        given.append(options.get("passages"))
        return real(self, *args, **options)

    monkeypatch.setattr(DocumentMemory, "answer", spy)
    return given


def test_passages_are_looked_for_once_and_read_as_they_were_found(
    index: InfiniPotIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, found, searches = read_by(monkeypatch), [], []
    real, find = DocumentMemory.passages, Finder.find
    monkeypatch.setattr(DocumentMemory, "passages", lambda *a, **o: found.append(real(*a, **o)) or found[-1])
    monkeypatch.setattr(Finder, "find", lambda *a, **o: searches.append(a) or find(*a, **o))
    for recall in (64, 300, 500, 2000):
        index.as_query_engine(recall=recall).query(QUESTION)
        assert given[-1] == found[-1]
    assert len(searches) == 4


class Keep(BaseNodePostprocessor):
    """Keeps passages that hold a word."""

    word: str

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        return [n for n in nodes if self.word in n.node.text]


def test_top_k_and_postprocessors_take_passages_away(index: InfiniPotIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    given = read_by(monkeypatch)
    every = index.as_retriever(recall=500).retrieve(QUESTION)
    assert shown(index.as_retriever(recall=500, similarity_top_k=2).retrieve(QUESTION)) == shown(every[:2])
    keep = Keep(word="mill")
    for options in ({"similarity_top_k": 2}, {"node_postprocessors": [keep]}):
        response = index.as_query_engine(recall=500, **options).query(QUESTION)
        assert len(response.source_nodes) < len(every)
        size = sum(p.end - p.start for p in given[-1])
        assert response.metadata["infinipot"]["recalled_tokens"] == size
        assert size <= sum(len(n.node.text) for n in response.source_nodes) + 4 * len(response.source_nodes)
    said = index.as_chat_engine(recall=500, node_postprocessors=[keep]).chat(QUESTION)
    assert [n.node.node_id for n in said.source_nodes] == [n.node.node_id for n in response.source_nodes]
    nothing = Keep(word="zebra")
    assert index.as_query_engine(node_postprocessors=[nothing]).query(QUESTION).response == "Empty Response"
    with pytest.raises(InfiniPotIndexError, match="similarity_top_k is 0"):
        index.as_retriever(similarity_top_k=0)
    foreign = [NodeWithScore(node=TextNode(text="The mill burned."))]
    with pytest.raises(InfiniPotIndexError, match="no passage of this index"):
        index.as_query_engine().synthesize(QueryBundle(QUESTION), foreign)


def test_an_engine_of_documents() -> None:
    engine = InfiniPotQueryEngine.from_documents([river()], tiny_llm(), max_new_tokens=3)
    assert engine.query("How far did it rise?").source_nodes[0].node.ref_doc_id == "river"
    with pytest.raises(QuestionError):
        engine.query("   ")


def test_followup_by_the_pot_takes_one_document(index: InfiniPotIndex) -> None:
    with pytest.raises(QuestionError, match="several memories were joined"):
        index.as_query_engine(followup="reuse").query(QUESTION)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"followup": "remember"}, "followup is 'remember': give one of recall, reuse, reread"),
        ({"output_cls": int}, "no option 'output_cls'"),
        ({"strem": True}, "no option 'strem'"),
        ({"max_tokens": 4}, r"no option 'max_tokens': did you mean max_new_tokens\? Give one of llm|chat_mode"),
    ],
)
def test_wrong_options(index: InfiniPotIndex, options: dict[str, Any], sentence: str) -> None:
    for make in (index.as_query_engine, index.as_chat_engine):
        with pytest.raises(InfiniPotIndexError, match=sentence):
            make(**options)
    with pytest.raises(InfiniPotIndexError, match=r"did you mean similarity_top_k\? Give one of .*streaming, .*seed"):
        index.as_query_engine(similarity_topk=2)
    with pytest.raises(InfiniPotIndexError, match=r"did you mean system_prompt\? Give one of .*memory, .*seed"):
        index.as_chat_engine(sys_prompt="Be brief.")
    with pytest.raises(InfiniPotIndexError, match=r"retriever has no option 'topk': .*similarity_top_k"):
        index.as_retriever(topk=3)
    with pytest.raises(QuestionError, match="0 tokens cannot be recalled"):
        index.as_query_engine(recall=0).query(QUESTION)


def test_what_tutorials_pass_and_means_nothing_here_is_taken(index: InfiniPotIndex) -> None:
    engine = index.as_query_engine(response_mode="compact", use_async=True, simple_template=None)
    assert engine.query(QUESTION).response
    assert engine.get_prompts() == {}


def test_transcripts_tell_speaker_and_time() -> None:
    lines = "\n\n".join(
        f"00:0{i}:00.000 --> 00:0{i}:30.000\n<v {'Ann' if i % 2 else 'Bob'}>The mill number {i} shall be sold in June."
        for i in range(1, 7)
    )
    talk = Document(text=f"WEBVTT\n\n{lines}\n", metadata={"file_name": "board.vtt"}, id_="talk")
    index = InfiniPotIndex.from_documents([talk], llm=tiny_llm())
    told = index.as_retriever(recall=60).retrieve("Which mill shall be sold, number 4?")[0].node.metadata
    assert told["speaker"] in ("Ann", "Bob")
    assert told["time"] % 60 == 0
    assert told["page_label"] == "1"


def test_a_cited_sentence_belongs_to_the_passage_that_holds_most_of_it() -> None:
    """A passage may begin within it, where the room ended; it became a source of its own, without tokens."""
    document = OurDocument.from_text("One two three. Four five six seven. Eight.", name="d")
    source = Source("ref", document, [Document(text=document.text)])
    nodes = [node_of(source, 0, 17, 2.0), node_of(source, 20, 42, 1.0)]
    quote = "Four five six seven."
    cited = {"document": "d", "start": 15, "end": 35, "quote": quote, "score": 0.7}
    first, other = cited_first(nodes, [cited], {"d": source})
    assert (first.node.metadata["start_char_idx"], first.node.metadata["cited"]) == (20, quote)
    assert other.node.metadata["start_char_idx"] == 0
    assert "cited" not in nodes[1].node.metadata  # the passage itself is as it was
    elsewhere = {**cited, "start": 17, "end": 20}
    assert len(cited_first(nodes, [elsewhere], {"d": source})) == 3


class Masking(BaseNodePostprocessor):
    """As those that hide names of persons do: the metadata stay, the text does not."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        for node in nodes:
            node.node = node.node.model_copy(update={"text": node.node.text.replace("mill", "****")})
        return nodes


def test_what_a_postprocessor_hides_is_not_read_all_the_same(index: InfiniPotIndex) -> None:
    with pytest.raises(InfiniPotIndexError, match=r"was changed .*: leave the postprocessor out"):
        index.as_query_engine(node_postprocessors=[Masking()]).query(QUESTION)


def test_blank_pages_are_no_sources() -> None:
    far = [page(1, "The mill burned in 1901."), page(2, "The weir broke in 1902."), page(90, "Nobody slept.")]
    index = InfiniPotIndex.from_documents(far, llm=tiny_llm())
    memory, sources = index.memory_and_sources()
    pages = sources["mill.pdf"].document.pages
    blank = memory.text.tokens_in(0, pages[1].end + 6, pages[70].end)
    assert blank[0] < blank[1]
    assert nodes_of([Passage(*blank, 1.0)], memory.text, sources) == []
    everything = nodes_of([Passage(0, len(memory.text), 1.0)], memory.text, sources)
    assert [node.node.metadata["page"] for node in everything] == [1, 2, 90]
    assert passages_in(everything, memory.text, sources) == [Passage(0, len(memory.text), 1.0)]
