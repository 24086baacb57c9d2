"""InfiniPotIndex: whole documents in order, read once; what changes is read, and nothing else."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from li_helpers import mill_pages, page, reads, river, tiny_llm
from llama_index.core import Settings, StorageContext
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, IndexNode, QueryBundle, TextNode
from llama_index.indices.managed.infinipot import InfiniPotIndex, InfiniPotIndexError
from llama_index.indices.managed.infinipot.keeper import Keeper
from llama_index.indices.managed.infinipot.nodes import passages_in
from llama_index.llms.infinipot import InfiniPotLLM

from infinipot_llm.errors import DocumentError, QuestionError
from infinipot_llm.memory.store import STORE_VARIABLE

MILL = "/nowhere/mill.pdf"


@pytest.fixture(scope="module")
def llm() -> InfiniPotLLM:
    return tiny_llm()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return reads(monkeypatch)


def built(**options: Any) -> InfiniPotIndex:
    return InfiniPotIndex.from_documents([*mill_pages(), river()], llm=tiny_llm(), **options)


def test_base_class() -> None:
    assert BaseIndex in inspect.getmro(InfiniPotIndex)


def test_documents_are_whole_and_in_order(read: list[str]) -> None:
    index = built()
    assert read == ["mill.pdf", "river"]
    assert list(index.ref_doc_info) == [MILL, "river"]
    assert len(index.ref_doc_info[MILL].node_ids) == 6
    assert index.ref_doc_info[MILL].metadata["file_name"] == "mill.pdf"
    assert index.document(MILL).text == "\n\n".join(p.text for p in mill_pages())
    assert index.document(MILL).pages[3].label == "A-4"
    assert [d.name for d in index.memory_and_sources()[0].documents] == ["mill.pdf", "river"]
    stored = index.docstore.get_nodes(index.ref_doc_info[MILL].node_ids)
    assert [n.get_content() for n in stored] == [p.text for p in mill_pages()]
    assert {n.ref_doc_id for n in stored} == {MILL}


def test_pages_come_back_in_order_from_any_order() -> None:
    mixed = [*mill_pages()[::-1], river()]
    index = InfiniPotIndex.from_documents(mixed, llm=tiny_llm(), lazy=True)
    assert index.document(MILL).content_hash == built(lazy=True).document(MILL).content_hash


def test_lazy_reads_with_the_first_question(read: list[str]) -> None:
    index = built(lazy=True)
    assert read == []
    engine = index.as_query_engine()
    assert read == []
    engine.query("Which mill?")
    assert read == ["mill.pdf", "river"]
    engine.query("Which river?")
    index.as_retriever().retrieve("Which?")
    assert read == ["mill.pdf", "river"]


def test_insert_reads_the_new_document_alone(read: list[str]) -> None:
    index = built()
    read.clear()
    index.insert(Document(text="The bridge is of oak.", id_="bridge"))
    assert read == ["bridge"]
    found = {n.node.ref_doc_id for n in index.as_retriever(recall=640).retrieve("What is the bridge of?")}
    assert "bridge" in found
    assert read == ["bridge"]


def test_pages_inserted_one_by_one_are_read_together(read: list[str]) -> None:
    index = InfiniPotIndex.from_documents([], llm=tiny_llm())
    for p in mill_pages():
        index.insert(p)
    assert read == ["mill.pdf"]  # the first page, before anybody knew of others
    index.as_query_engine().query("Which?")
    assert read == ["mill.pdf", "mill.pdf"]
    assert index.document(MILL).page_count == 6


def test_delete_takes_one_document_out(read: list[str]) -> None:
    index = built()
    read.clear()
    index.delete_ref_doc("river", delete_from_docstore=True)
    assert list(index.ref_doc_info) == [MILL]
    assert index.docstore.get_ref_doc_info("river") is None
    assert {n.node.ref_doc_id for n in index.as_retriever().retrieve("The river?")} == {MILL}
    assert read == []
    index.insert(river())
    assert read == []  # its memory is still in the store


def test_delete_by_a_page_s_id_and_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    index = built(lazy=True)
    index.delete_ref_doc("nothing")
    assert "not found, nothing deleted" in caplog.text
    assert len(index.ref_doc_info) == 2
    index.delete_ref_doc(index.ref_doc_info[MILL].node_ids[2])
    assert list(index.ref_doc_info) == ["river"]
    assert index.docstore.get_ref_doc_info(MILL) is not None  # its text stays, as in other indices


def test_delete_nodes_takes_pages_out() -> None:
    index = built(lazy=True)
    gone = index.ref_doc_info[MILL].node_ids[1]
    index.delete_nodes([gone], delete_from_docstore=True)
    assert index.document(MILL).empty_pages == (2,)
    assert "mill number 3" in index.document(MILL).text
    index.delete_nodes(index.ref_doc_info[MILL].node_ids)
    assert list(index.ref_doc_info) == ["river"]


def test_refresh_reads_what_has_changed(read: list[str]) -> None:
    index = built()
    read.clear()
    changed = mill_pages()
    changed[2] = page(3, "Page 3 says that nothing burned.")
    new = Document(text="The bridge is of oak.", id_="bridge")
    assert index.refresh_ref_docs([*changed, river(), new]) == [True] * 6 + [False, True]
    assert read == ["mill.pdf", "bridge"]
    assert "nothing burned" in index.document(MILL).text
    assert index.refresh_ref_docs([*changed, river(), new]) == [False] * 8
    assert read == ["mill.pdf", "bridge"]
    assert list(index.ref_doc_info) == [MILL, "river", "bridge"]


def test_refresh_knows_files_again_whatever_the_ids_of_their_pages() -> None:
    index = built(lazy=True)
    assert {p.id_ for p in mill_pages()}.isdisjoint(index.ref_doc_info[MILL].node_ids)
    assert not any(index.refresh_ref_docs(mill_pages()))


def test_metadata_alone_is_taken_over_without_reading(read: list[str]) -> None:
    index = built()
    read.clear()
    assert (
        index.refresh_ref_docs([page(p.metadata["page"], p.text, author="nobody") for p in mill_pages()]) == [True] * 6
    )
    assert read == []
    node = index.as_retriever().retrieve("Which mill burned?")[0].node
    assert node.metadata["author"] == "nobody"


def test_refresh_with_some_pages_of_a_file() -> None:
    index = InfiniPotIndex.from_documents(
        [page(i, f"Page {i}.", total_pages=3) for i in (1, 2, 3)], llm=tiny_llm(), lazy=True
    )
    index.refresh_ref_docs([page(2, "Page two.", total_pages=3)])
    assert index.document(MILL).text == "Page 1.\n\nPage two.\n\nPage 3."
    index.refresh_ref_docs([page(i, f"Page {i}.", total_pages=2) for i in (1, 2)])  # the file is shorter now
    assert index.document(MILL).text == "Page 1.\n\nPage 2."


def test_a_file_that_got_shorter_loses_its_pages_whatever_their_ids_are() -> None:
    def pages(version: int, number: int) -> list[Document]:
        made = [page(i, f"Page {i}, version {version}.", total_pages=number) for i in range(1, number + 1)]
        for i, one in enumerate(made):
            one.id_ = f"{MILL}_part_{i}"  # as SimpleDirectoryReader(filename_as_id=True) has it
        return made

    index = InfiniPotIndex.from_documents(pages(1, 5), llm=tiny_llm(), lazy=True)
    index.refresh_ref_docs(pages(2, 3))
    assert index.document(MILL).text == "Page 1, version 2.\n\nPage 2, version 2.\n\nPage 3, version 2."


def test_parts_that_are_not_given_again_stay_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Whether they are gone, or did not change, nobody says."""

    def sections(*names: str) -> list[Document]:
        return [
            Document(text=n, id_=f"a_part_{n}", metadata={"file_path": "/a.md", "file_name": "a.md"}) for n in names
        ]

    index = InfiniPotIndex.from_documents(sections("one", "two", "three"), llm=tiny_llm(), lazy=True)
    index.update_ref_doc(sections("one")[0])
    assert not caplog.messages
    assert index.refresh_ref_docs(sections("one", "two")) == [False, False]
    assert "three" in index.document("/a.md").text
    assert caplog.messages == [
        "2 of the 3 parts of a.md were given, and the others stay: if they are gone, delete_ref_doc('/a.md')."
    ]


def test_the_text_of_another_index_stays_where_it_is() -> None:
    context = StorageContext.from_defaults()
    first = InfiniPotIndex.from_documents([page(1, "One.")], llm=tiny_llm(), lazy=True, storage_context=context)
    other = InfiniPotIndex.from_documents([page(1, "One.")], llm=tiny_llm(), lazy=True, storage_context=context)
    other.refresh_ref_docs([page(1, "Two.")])
    assert first.as_retriever().retrieve("What?")[0].node.text == "One."
    assert other.as_retriever().retrieve("What?")[0].node.text == "Two."
    other.delete_ref_doc(MILL, delete_from_docstore=True)
    assert first.as_retriever().retrieve("What?")[0].node.text == "One."


def test_the_text_of_a_pdf_keeps_its_name() -> None:
    """Readers of other libraries give text without page numbers under the name of the file."""
    index = InfiniPotIndex.from_documents(
        [Document(text="The mill burned.", metadata={"file_name": "mill.pdf"})], llm=tiny_llm(), lazy=True
    )
    assert [d.name for d in index.memory_and_sources()[0].documents] == ["mill.pdf"]


def test_update_of_one_page_by_its_id() -> None:
    pages = [
        Document(text=t, metadata={"file_name": "a.pdf", "page_label": t}, id_=f"id-{t}") for t in ("i", "ii", "iii")
    ]
    index = InfiniPotIndex.from_documents(pages, llm=tiny_llm(), lazy=True)
    index.update_ref_doc(Document(text="two", metadata={"file_name": "a.pdf", "page_label": "ii"}, id_="id-ii"))
    assert index.document("a.pdf").text == "i\n\ntwo\n\niii"
    assert index.document("id-ii") is index.document("a.pdf")


async def test_async_twins() -> None:
    index = built(lazy=True)
    await index.ainsert(Document(text="The bridge is of oak.", id_="bridge"))
    await index.adelete_ref_doc("river")
    assert await index.arefresh_ref_docs([*mill_pages(), Document(text="New.", id_="new")]) == [False] * 6 + [True]
    await index.aupdate_ref_doc(Document(text="The bridge is of elm.", id_="bridge"))
    assert list(index.ref_doc_info) == [MILL, "bridge", "new"]
    assert "elm" in index.document("bridge").text


def test_two_documents_of_one_name_are_told_apart() -> None:
    pages = [page(1, f"The mill in {place} burned.", file_path=f"/{place}/mill.pdf") for place in ("north", "south")]
    index = InfiniPotIndex.from_documents(pages, llm=tiny_llm())
    memory, sources = index.memory_and_sources()
    assert [d.name for d in memory.documents] == ["north/mill.pdf", "south/mill.pdf"] == list(sources)
    found = index.as_retriever().retrieve("Which?")
    assert {n.node.metadata["file_path"]: n.node.text for n in found} == {
        "/north/mill.pdf": "The mill in north burned.", "/south/mill.pdf": "The mill in south burned.",
    }  # fmt: skip


def test_one_content_twice() -> None:
    pages = [page(1, "The mill burned.", file_path=f"/{place}/mill.pdf") for place in ("north", "south")]
    index = InfiniPotIndex.from_documents(pages, llm=tiny_llm())
    assert {n.node.ref_doc_id for n in index.as_retriever().retrieve("Which?")} == {
        "/north/mill.pdf",
        "/south/mill.pdf",
    }


def test_bad_documents_are_refused_and_nothing_is_read(read: list[str]) -> None:
    context = StorageContext.from_defaults()
    for bad, sentence in (
        (Document(text="%PDF-1.4\n%\x93", metadata={"file_name": "raw.pdf"}), r"raw\.pdf was loaded as the raw bytes"),
        (page(1, " ", "scan.pdf"), r"scan\.pdf cannot be indexed, none of its pages holds text"),
    ):
        with pytest.raises(DocumentError, match=sentence):
            InfiniPotIndex.from_documents([*mill_pages(), bad], llm=tiny_llm(), storage_context=context)
    assert read == []
    assert context.docstore.docs == {}
    index = built(lazy=True)
    with pytest.raises(DocumentError, match="raw bytes"):
        index.refresh_ref_docs([page(1, "New."), Document(text="%PDF-1.4\n%\x93")])
    assert index.document(MILL).page_count == 6


def test_an_index_without_documents() -> None:
    index = InfiniPotIndex.from_documents([], llm=tiny_llm())
    for ask in (index.as_query_engine().query, index.as_retriever().retrieve, index.as_chat_engine().chat):
        with pytest.raises(InfiniPotIndexError, match="the index holds no documents: insert one"):
            ask("What?")
    assert index.ref_doc_info == {}
    with pytest.raises(InfiniPotIndexError, match="no document 'a'"):
        index.document("a")


def test_a_model_is_needed(monkeypatch: pytest.MonkeyPatch, llm: InfiniPotLLM) -> None:
    with pytest.raises(InfiniPotIndexError, match="none was given: pass llm=InfiniPotLLM"):
        InfiniPotIndex.from_documents([river()])
    with pytest.raises(InfiniPotIndexError, match="this is a MockLLM"):
        InfiniPotIndex.from_documents([river()], llm=MockLLM())
    monkeypatch.setattr(Settings, "_llm", llm)
    assert InfiniPotIndex.from_documents([river()], lazy=True).llm is llm


def test_nothing_is_split_and_chunks_are_refused(llm: InfiniPotLLM) -> None:
    with pytest.raises(InfiniPotIndexError, match="does not split documents"):
        InfiniPotIndex.from_documents([river()], llm=llm, transformations=[SentenceSplitter()])
    with pytest.raises(InfiniPotIndexError, match="no option 'chunk_size'"):
        InfiniPotIndex.from_documents([river()], llm=llm, chunk_size=99)
    with pytest.raises(InfiniPotIndexError, match="takes no objects"):
        InfiniPotIndex(nodes=[], objects=[IndexNode(text="x", index_id="x")], llm=llm)
    chunks = SentenceSplitter(chunk_size=32, chunk_overlap=10).get_nodes_from_documents([river()])
    with pytest.raises(InfiniPotIndexError, match=r"chunks.*from_documents"):
        InfiniPotIndex(nodes=chunks, llm=llm)
    whole = InfiniPotIndex(nodes=[TextNode(text="Whole.", id_="a")], llm=llm, lazy=True)
    assert whole.document("a").text == "Whole."


def test_another_model_cannot_use_the_memories(llm: InfiniPotLLM) -> None:
    index = InfiniPotIndex.from_documents([river()], llm=llm)
    with pytest.raises(InfiniPotIndexError, match="only it can use its memories"):
        index.as_query_engine(llm=tiny_llm(seed=1))
    other = tiny_llm(options={"max_new_tokens": 2})
    answer = index.as_query_engine(llm=other).query("Which?")
    assert answer.response == index.as_query_engine(max_new_tokens=2).query("Which?").response
    assert len(answer.response) < len(index.as_query_engine().query("Which?").response)


def test_a_memory_without_a_shelf_answers_from_the_pot() -> None:
    index = InfiniPotIndex.from_documents([river()], llm=tiny_llm(shelf="off"))
    response = index.as_query_engine().query("How far did it rise?")
    assert response.metadata["infinipot"]["how"] == "reuse"
    with pytest.raises(QuestionError, match="without a shelf"):
        index.as_retriever().retrieve("How far?")


def test_what_an_index_without_a_store_leaves_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/llama-index.md says of store=False, and of documents that would fit into the budget."""
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    short = Document(text="The bridge is of oak.", id_="bridge")
    assert (
        InfiniPotIndex.from_documents([short], llm=tiny_llm(shelf="off")).as_query_engine().query("Of what?").response
    )
    assert not (tmp_path / "store").exists()
    index = InfiniPotIndex.from_documents([short], llm=tiny_llm())
    assert len(list((tmp_path / "store").glob("*.part"))) == 1
    del index
    gc.collect()
    assert [p.name for p in (tmp_path / "store").iterdir()] in ([], [".lock"])


@pytest.mark.parametrize("told", [{}, {"file_path": "/nowhere/a.txt", "file_name": "a.txt"}])
def test_a_document_inserted_again_replaces_the_one_before(told: dict[str, str], tmp_path: Path) -> None:
    llm = tiny_llm()
    index = InfiniPotIndex.from_documents([Document(text="The mill burned.", id_="A", metadata=told)], llm=llm)
    for again, id_ in (("The mill burned.", "A"), ("The bridge fell.", "A"), ("The river rose.", "B" if told else "A")):
        index.insert(Document(text=again, id_=id_, metadata=told))
        (ref_doc_id,) = index.ref_doc_info
        assert index.document(ref_doc_id).text == again
        assert len(index.ref_doc_info[ref_doc_id].node_ids) == 1
    index.storage_context.persist(str(tmp_path))
    assert InfiniPotIndex.load(tmp_path, llm=llm).document(ref_doc_id).text == "The river rose."


def test_an_id_twice_is_one_document_or_refused(llm: InfiniPotLLM) -> None:
    index = InfiniPotIndex.from_documents([river(), river()], llm=llm, lazy=True)
    assert index.document("river").text == river().text
    for other in (Document(text="Another.", id_="river"), page(1, "Another.")):
        other.id_ = "river"
        with pytest.raises(InfiniPotIndexError, match="two different documents have the id 'river'"):
            InfiniPotIndex.from_documents([river(), other], llm=llm)
    index.insert(Document(text="One.", id_="p", metadata={"file_path": "/nowhere/a.txt"}))
    with pytest.raises(InfiniPotIndexError, match="the id 'p' is that of a page of another file"):
        index.insert(Document(text="Two.", id_="p", metadata={"file_path": "/nowhere/b.txt"}))
    index.update_ref_doc(Document(text="Three.", id_="p"))
    assert index.document("/nowhere/a.txt").text == "Three."
    assert index.docstore.get_ref_doc_info("/nowhere/a.txt") is not None


def test_documents_that_come_and_go_between_retrieval_and_answer() -> None:
    index = built()
    engine = index.as_query_engine(similarity_top_k=1)
    nodes = [n for n in index.as_retriever().retrieve("The river?") if n.node.ref_doc_id == "river"]
    index.delete_ref_doc(MILL)  # stands before the river
    answer = engine.synthesize(QueryBundle("The river?"), nodes)
    assert {n.node.text for n in answer.source_nodes} == {n.node.text for n in nodes}
    memory, sources = index.memory_and_sources()
    for node in nodes:
        (passage,) = passages_in([node], memory.text, sources)
        assert node.node.text in memory.text.span(*memory.text.per_document(passage.start, passage.end)[0]).text
    index.insert(Document(text="No river.", id_="river"))
    with pytest.raises(InfiniPotIndexError, match=r"river was changed or taken out of the index .*: ask again"):
        engine.synthesize(QueryBundle("The river?"), nodes)


async def test_inserts_and_questions_at_once() -> None:
    index = InfiniPotIndex.from_documents([river()], llm=tiny_llm())
    new = [Document(text=f"The bridge number {i} is of oak.", id_=f"bridge-{i}") for i in range(6)]
    asking = [index.as_query_engine().aquery("Which bridge?") for _ in range(3)]
    await asyncio.gather(*(index.ainsert(d) for d in new), *asking)
    assert sorted(index.ref_doc_info) == [*(d.id_ for d in new), "river"]


def test_a_document_is_listed_only_once_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    index = built(lazy=True)
    putting, failed = threading.Event(), []
    real = Keeper.put

    def slow(self: Keeper, *args: Any) -> None:
        putting.set()
        time.sleep(0.2)
        real(self, *args)

    def ask() -> None:
        try:
            putting.wait(10)
            index.read()
        except KeyError as error:
            failed.append(error)

    monkeypatch.setattr(Keeper, "put", slow)
    asking = threading.Thread(target=ask)
    asking.start()
    index.insert(Document(text="The bridge is of oak.", id_="bridge"))
    asking.join()
    assert failed == []


def test_two_indices_of_one_storage_context_keep_their_texts(llm: InfiniPotLLM) -> None:
    context = StorageContext.from_defaults()
    one, two = (InfiniPotIndex.from_documents([river()], llm=llm, storage_context=context, lazy=True) for _ in range(2))
    other = Document(text="Another.", id_="river")
    with pytest.raises(InfiniPotIndexError, match="another index of this storage context holds another text"):
        InfiniPotIndex.from_documents([other], llm=llm, storage_context=context)
    with pytest.raises(InfiniPotIndexError, match="under the id 'river': give the document another id_"):
        two.insert(other)
    assert one.docstore.get_nodes(one.ref_doc_info["river"].node_ids)[0].get_content() == river().text
    alone = InfiniPotIndex.from_documents([river()], llm=llm, lazy=True)
    alone.delete_ref_doc("river")  # its text stays in the docstore, and is in nobody's way
    alone.insert(other)
    assert alone.document("river").text == "Another."


@pytest.mark.parametrize("documents", ["report.pdf", ["Some text."], [3]])
def test_what_is_no_document_is_a_sentence(documents: Any, llm: InfiniPotLLM) -> None:
    sentence = r"this is of type (str|int): give a list of Document\(text=...\)"
    with pytest.raises(InfiniPotIndexError, match=sentence):
        InfiniPotIndex.from_documents(documents, llm=llm)
    with pytest.raises(InfiniPotIndexError, match=sentence):
        InfiniPotIndex.from_documents([], llm=llm).refresh_ref_docs(documents)


def test_what_to_do_about_changed_files_is_one_of_two_words(llm: InfiniPotLLM) -> None:
    with pytest.raises(InfiniPotIndexError, match="changed is 'ignor': give 'refuse' or 'ignore'"):
        InfiniPotIndex.from_documents([river()], llm=llm, changed="ignor")
