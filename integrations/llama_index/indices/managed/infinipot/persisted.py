"""Opening the folder of a persisted index, with a sentence for whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

from llama_index.core.storage.storage_context import StorageContext
from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError
from llama_index.indices.managed.infinipot.struct import InfiniPotStruct

from infinipot_llm.documents.clean import one_line


def open_context(folder: Path, index_id: str | None) -> tuple[StorageContext, InfiniPotStruct]:
    """Open LlamaIndex's files in a folder, and find the index among them.

    Args:
        folder: What was given to `storage_context.persist`.
        index_id: Which index; None: the only one.

    Raises:
        InfiniPotIndexError: They are missing or damaged, or hold no such index.
    """
    if not (folder / "index_store.json").is_file():
        raise InfiniPotIndexError(
            f"{folder} holds no index: give the folder that index.storage_context.persist(folder) wrote."
        )
    try:
        context = StorageContext.from_defaults(persist_dir=str(folder))
        structs = [s for s in context.index_store.index_structs() if isinstance(s, InfiniPotStruct)]
    except Exception as error:  # JSON cut short, other types, missing files: whatever LlamaIndex makes of them
        raise InfiniPotIndexError(
            f"the files in {folder} cannot be opened ({type(error).__name__}: {one_line(str(error))[:100]}): build the "
            "index again with from_documents."
        ) from error
    if index_id is not None:
        structs = [s for s in structs if s.index_id == index_id]
    if not structs:
        which = f"no InfiniPotIndex {index_id}" if index_id else "no InfiniPotIndex"
        raise InfiniPotIndexError(f"{folder} holds {which}: build one with from_documents, and persist it there.")
    if len(structs) > 1:
        names = ", ".join(s.index_id for s in structs)
        raise InfiniPotIndexError(f"{folder} holds several indices: give index_id, one of {names}.")
    return context, structs[0]
