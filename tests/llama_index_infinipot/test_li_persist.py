"""A persisted index: opened elsewhere without reading, refused when model or document differ."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
from li_helpers import mill_pages, page, reads, river, shown, tiny_llm, write_pdf
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import Document
from llama_index.indices.managed.infinipot import InfiniPotIndex, InfiniPotIndexError
from llama_index.llms.infinipot import InfiniPotLLM
from llama_index.readers.infinipot import InfiniPotPDFReader

from infinipot_llm.errors import InfiniPotError, MemoryFileError

QUESTION = "When did mill number 4 burn?"


@pytest.fixture(scope="module")
def persisted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A persisted index, and what it answered before."""
    index = InfiniPotIndex.from_documents([*mill_pages(), river()], llm=tiny_llm())
    folder = tmp_path_factory.mktemp("persisted") / "store"
    index.storage_context.persist(str(folder))
    return folder, index.as_query_engine().query(QUESTION)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of documents that were read; a process that never saw them has to read them."""
    return reads(monkeypatch)


@pytest.fixture
def llm() -> InfiniPotLLM:
    return tiny_llm(options={"store": False})


def test_what_stands_in_the_folder(persisted: tuple[Path, Any]) -> None:
    folder, _ = persisted
    assert {p.name for p in folder.glob("*.json")} >= {
        "docstore.json",
        "index_store.json",
        "infinipot__vector_store.json",
    }
    memories = list((folder / "infinipot").iterdir())
    assert len(memories) == 2
    assert {p.suffix for p in memories} == {".infinipot"}
    assert "mill number 4" in (folder / "docstore.json").read_text()


@pytest.mark.parametrize("lazy", [False, True])
def test_load_answers_the_same_without_reading(
    persisted: tuple[Path, Any], unread: list[str], llm: InfiniPotLLM, lazy: bool
) -> None:
    folder, before = persisted
    index = InfiniPotIndex.load(folder, llm=llm, lazy=lazy)
    assert list(index.ref_doc_info) == ["/nowhere/mill.pdf", "river"]
    after = index.as_query_engine().query(QUESTION)
    assert after.response == before.response
    assert shown(after.source_nodes) == shown(before.source_nodes)
    assert unread == []
    assert not any(index.refresh_ref_docs([*mill_pages(), river()]))
    index.insert(Document(text="The bridge is of oak.", id_="bridge"))
    index.read()
    assert unread == ["bridge"]


def test_load_index_from_storage(persisted: tuple[Path, Any], unread: list[str], llm: InfiniPotLLM) -> None:
    folder, before = persisted
    context = StorageContext.from_defaults(persist_dir=str(folder))
    index = load_index_from_storage(context, llm=llm)
    assert isinstance(index, InfiniPotIndex)
    assert index.as_query_engine().query(QUESTION).response == before.response
    assert unread == []


def test_a_folder_that_was_moved(persisted: tuple[Path, Any], llm: InfiniPotLLM, tmp_path: Path) -> None:
    index = InfiniPotIndex.from_documents([river()], llm=tiny_llm())
    index.storage_context.persist(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "b"))
    with pytest.raises(MemoryFileError, match=r"memory of river is not in .*persist_dir"):
        load_index_from_storage(context, llm=llm)
    assert load_index_from_storage(context, llm=llm, persist_dir=tmp_path / "b").ref_doc_info.keys() == {"river"}
    assert InfiniPotIndex.load(str(tmp_path / "b"), llm=llm).ref_doc_info.keys() == {"river"}


def test_another_process(persisted: tuple[Path, Any]) -> None:
    folder, before = persisted
    script = (
        "import sys, json\n"
        "from li_helpers import tiny_llm\n"
        "from llama_index.indices.managed.infinipot import InfiniPotIndex\n"
        "from infinipot_llm.engine import InfiniPot\n"
        "InfiniPot.read = None\n"
        "index = InfiniPotIndex.load(sys.argv[1], llm=tiny_llm(options={'store': False}))\n"
        f"response = index.as_query_engine().query({QUESTION!r})\n"
        "print(json.dumps([response.response, [n.node.node_id for n in response.source_nodes]]))\n"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=300, check=False,
        env={**__import__("os").environ, "PYTHONPATH": f"{here}:{here.parent}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [before.response, [n.node.node_id for n in before.source_nodes]]


def test_another_model_is_refused(persisted: tuple[Path, Any]) -> None:
    with pytest.raises(MemoryFileError, match=r"memory of mill\.pdf cannot be used: .* was made with another model"):
        InfiniPotIndex.load(persisted[0], llm=tiny_llm(seed=1))
    lazy = InfiniPotIndex.load(persisted[0], llm=tiny_llm(seed=1), lazy=True)
    with pytest.raises(MemoryFileError, match="another model"):
        lazy.as_query_engine().query(QUESTION)


def copied(persisted: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(persisted[0], tmp_path / "copy"))


def test_a_docstore_that_was_changed_is_refused(persisted: tuple[Path, Any], llm: InfiniPotLLM, tmp_path: Path) -> None:
    folder = copied(persisted, tmp_path)
    docstore = folder / "docstore.json"
    docstore.write_text(docstore.read_text().replace("mill number 4", "mill number 9"))
    with pytest.raises(InfiniPotIndexError, match=r"text of mill\.pdf is not the text that was read"):
        InfiniPotIndex.load(folder, llm=llm)


def test_a_damaged_swapped_or_missing_memory_is_refused(
    persisted: tuple[Path, Any], llm: InfiniPotLLM, tmp_path: Path
) -> None:
    folder = copied(persisted, tmp_path)
    one, two = sorted((folder / "infinipot").iterdir())
    whole = one.read_bytes()
    one.write_bytes(two.read_bytes())
    with pytest.raises(MemoryFileError, match="cannot be used: this memory holds other documents"):
        InfiniPotIndex.load(folder, llm=llm)
    one.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MemoryFileError, match="cannot be used"):
        InfiniPotIndex.load(folder, llm=llm)
    one.unlink()
    with pytest.raises(MemoryFileError, match="is not in"):
        InfiniPotIndex.load(folder, llm=llm)


@pytest.mark.parametrize("name", ["../secret.infinipot", "/etc/passwd", "x.infinipot", ""])
def test_a_forged_name_of_a_memory_opens_nothing(
    persisted: tuple[Path, Any], llm: InfiniPotLLM, tmp_path: Path, name: str
) -> None:
    folder = copied(persisted, tmp_path)
    (tmp_path / "copy" / "secret.infinipot").write_bytes(b"secret")
    store = json.loads((folder / "index_store.json").read_text())
    (entry,) = store["index_store/data"].values()
    struct = json.loads(entry["__data__"])
    struct["documents"][0]["memory"] = name
    entry["__data__"] = json.dumps(struct)
    (folder / "index_store.json").write_text(json.dumps(store))
    with pytest.raises(MemoryFileError, match="is not in"):
        InfiniPotIndex.load(folder, llm=llm)


@pytest.mark.parametrize(
    ("name", "text"),
    [("index_store.json", "{"), ("docstore.json", "{"), ("index_store.json", "[]"), ("index_store.json", '{"a": {}}')],
)
def test_damaged_json_is_a_sentence(
    persisted: tuple[Path, Any], llm: InfiniPotLLM, tmp_path: Path, name: str, text: str
) -> None:
    folder = copied(persisted, tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(InfiniPotIndexError, match=r"cannot be opened|holds no InfiniPotIndex"):
        InfiniPotIndex.load(folder, llm=llm)


def test_a_folder_without_an_index(tmp_path: Path, llm: InfiniPotLLM) -> None:
    with pytest.raises(InfiniPotIndexError, match="holds no index: give the folder"):
        InfiniPotIndex.load(tmp_path, llm=llm)
    other = VectorStoreIndex.from_documents([river()], embed_model=MockEmbedding(8))
    other.storage_context.persist(tmp_path)
    with pytest.raises(InfiniPotIndexError, match="holds no InfiniPotIndex: build one"):
        InfiniPotIndex.load(tmp_path, llm=llm)


def test_a_file_that_changed_on_disk(tmp_path: Path, llm: InfiniPotLLM, unread: list[str]) -> None:
    source = tmp_path / "note.txt"
    source.write_text("The bridge is of oak.")

    def documents() -> list[Document]:
        return [Document(text=source.read_text(), metadata={"file_path": str(source), "file_name": "note.txt"})]

    index = InfiniPotIndex.from_documents(documents(), llm=llm)
    index.storage_context.persist(tmp_path / "store")
    source.touch()  # another time, the same content
    InfiniPotIndex.load(tmp_path / "store", llm=llm)
    source.write_text("The bridge is of elm.")
    with pytest.raises(InfiniPotIndexError, match=r"note\.txt has changed on disk since.*changed='ignore'"):
        InfiniPotIndex.load(tmp_path / "store", llm=llm)
    unread.clear()
    opened = InfiniPotIndex.load(tmp_path / "store", llm=llm, changed="ignore")
    assert opened.refresh_ref_docs(documents()) == [True]
    assert unread == ["note.txt"]
    opened.storage_context.persist(tmp_path / "store")
    assert "elm" in InfiniPotIndex.load(tmp_path / "store", llm=llm).document(str(source)).text
    source.unlink()  # an index needs its files no more
    InfiniPotIndex.load(tmp_path / "store", llm=llm)


@pytest.mark.parametrize("given", [Path("report.pdf"), "report.pdf"])
def test_a_pdf_given_by_a_relative_path_that_changed_on_disk(
    tmp_path: Path, llm: InfiniPotLLM, monkeypatch: pytest.MonkeyPatch, given: Path | str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pdf(tmp_path / "report.pdf", "The bridge is of oak.")
    index = InfiniPotIndex.from_documents(InfiniPotPDFReader().load_data(given), llm=llm)
    index.storage_context.persist("store")
    write_pdf(tmp_path / "report.pdf", "The bridge is of elm.")
    monkeypatch.chdir(tmp_path.parent)  # another process works in a folder of its own
    with pytest.raises(InfiniPotIndexError, match=r"report\.pdf has changed on disk since"):
        InfiniPotIndex.load(tmp_path / "store", llm=llm)


def test_an_id_is_no_path(tmp_path: Path, llm: InfiniPotLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "river").write_text("Something else.")
    index = InfiniPotIndex.from_documents([river()], llm=llm, lazy=True)
    index.storage_context.persist("store")
    (tmp_path / "river").write_text("Something else again.")
    assert InfiniPotIndex.load("store", llm=llm, lazy=True).ref_doc_info.keys() == {"river"}


def test_a_file_of_other_bytes_and_the_same_text(tmp_path: Path, llm: InfiniPotLLM, unread: list[str]) -> None:
    source, store = write_pdf(tmp_path / "report.pdf", "The bridge is of oak."), tmp_path / "store"
    index = InfiniPotIndex.from_documents(InfiniPotPDFReader().load_data(source), llm=llm)
    index.storage_context.persist(store)
    source.write_bytes(source.read_bytes() + b"% saved again\n")
    with pytest.raises(InfiniPotIndexError, match=r"report\.pdf has changed on disk since"):
        InfiniPotIndex.load(store, llm=llm)
    unread.clear()
    opened = InfiniPotIndex.load(store, llm=llm, changed="ignore")
    assert opened.refresh_ref_docs(InfiniPotPDFReader().load_data(source)) == [False]
    opened.storage_context.persist(store)
    InfiniPotIndex.load(store, llm=llm)
    assert unread == []


def test_persisting_again_removes_what_no_document_needs(tmp_path: Path) -> None:
    index = InfiniPotIndex.from_documents([*mill_pages(), river()], llm=tiny_llm())
    index.storage_context.persist(tmp_path)
    before = {p.name for p in (tmp_path / "infinipot").iterdir()}
    (tmp_path / "infinipot" / "mine.txt").write_text("Mine.")
    index.refresh_ref_docs([page(1, "The mill stands.")])
    index.delete_ref_doc("river")
    index.storage_context.persist(tmp_path)
    after = {p.name for p in (tmp_path / "infinipot").iterdir()}
    assert "mine.txt" in after
    assert len(after) == 2
    assert after.isdisjoint(before)


def test_a_lazy_index_persists_without_reading(tmp_path: Path, unread: list[str]) -> None:
    index = InfiniPotIndex.from_documents([river()], llm=tiny_llm(options={"store": False}), lazy=True)
    index.storage_context.persist(tmp_path)
    opened = InfiniPotIndex.load(tmp_path, llm=tiny_llm(options={"store": False}), lazy=True)
    opened.storage_context.persist(tmp_path)
    assert unread == []
    opened.as_query_engine().query("How far did it rise?")
    opened.storage_context.persist(tmp_path)
    InfiniPotIndex.load(tmp_path, llm=tiny_llm(options={"store": False}))
    assert unread == ["river"]


def test_an_index_opened_lazily_keeps_its_memories_when_it_is_persisted(
    persisted: tuple[Path, Any], llm: InfiniPotLLM, tmp_path: Path, unread: list[str]
) -> None:
    folder = copied(persisted, tmp_path)
    opened = InfiniPotIndex.load(folder, llm=llm, lazy=True)
    opened.storage_context.persist(folder)
    opened.storage_context.persist(tmp_path / "other")
    for place in (folder, tmp_path / "other"):
        assert InfiniPotIndex.load(place, llm=llm).as_query_engine().query(QUESTION).response == persisted[1].response
    assert unread == []


def test_beside_another_index_in_one_storage_context(tmp_path: Path, llm: InfiniPotLLM) -> None:
    context = StorageContext.from_defaults()
    embed = MockEmbedding(8)
    vectors = VectorStoreIndex.from_documents([river()], storage_context=context, embed_model=embed)
    mine = InfiniPotIndex.from_documents(mill_pages(), storage_context=context, llm=llm)
    also = InfiniPotIndex.from_documents([river()], storage_context=context, llm=llm)
    context.to_dict()
    context.persist(str(tmp_path))
    assert len(list((tmp_path / "infinipot").iterdir())) == 2
    with pytest.raises(InfiniPotIndexError, match="holds several indices: give index_id"):
        InfiniPotIndex.load(tmp_path, llm=llm)
    assert InfiniPotIndex.load(tmp_path, llm=llm, index_id=mine.index_id).ref_doc_info.keys() == {"/nowhere/mill.pdf"}
    assert InfiniPotIndex.load(tmp_path, llm=llm, index_id=also.index_id).ref_doc_info.keys() == {"river"}
    alone = InfiniPotIndex.load(tmp_path, llm=llm, index_id=mine.index_id)
    alone.insert(Document(text="The bridge was built in 1911.", id_="bridge"))
    alone.storage_context.persist(str(tmp_path))  # the other index was not loaded: its memories stay
    assert InfiniPotIndex.load(tmp_path, llm=llm, index_id=also.index_id).ref_doc_info.keys() == {"river"}
    assert len(list((tmp_path / "infinipot").iterdir())) == 3
    again = StorageContext.from_defaults(persist_dir=str(tmp_path))
    assert load_index_from_storage(again, index_id=vectors.index_id, embed_model=embed).as_retriever().retrieve("x")


def test_other_file_systems(tmp_path: Path, llm: InfiniPotLLM) -> None:
    index = InfiniPotIndex.from_documents([river()], llm=llm)
    with pytest.raises(InfiniPotError, match="memories are files on this machine"):
        index.storage_context.persist("/li-store", fs=fsspec.filesystem("memory"))
    index.storage_context.persist(str(tmp_path), fs=fsspec.filesystem("file"))
    assert InfiniPotIndex.load(tmp_path, llm=llm).ref_doc_info.keys() == {"river"}


def test_what_was_inserted_after_persisting_is_open_in_this_process(
    tmp_path: Path, llm: InfiniPotLLM, unread: list[str]
) -> None:
    """It is in no folder yet; elsewhere, where only the folder is, that is an error."""
    index = InfiniPotIndex.from_documents([river()], llm=llm)
    index.storage_context.persist(str(tmp_path / "store"))
    index.insert(Document(text="The bridge is of oak.", id_="bridge"))
    unread.clear()
    again = load_index_from_storage(index.storage_context, llm=llm)
    assert [d.name for d in again.memory_and_sources()[0].documents] == ["river", "bridge"]
    assert unread == []
    with pytest.raises(MemoryFileError, match="the memory of bridge is not in"):
        load_index_from_storage(index.storage_context, llm=tiny_llm(options={"store": False}))
