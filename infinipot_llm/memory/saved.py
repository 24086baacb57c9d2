"""What of a memory goes into its file, and back: beside the shelf tokens and documents; the pot is in saved_pot.py."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from infinipot_llm.answering.prompt import PromptForm
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document, Page
from infinipot_llm.documents.document import Turn
from infinipot_llm.errors import InfiniPotError, MemoryFileError
from infinipot_llm.memory.file import Draft, MemoryFile, beside, full_disk_told
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.layout import Layout
from infinipot_llm.memory.saved_pot import check_normal, check_pot, read_pot, write_pot
from infinipot_llm.memory.setup import Setup
from infinipot_llm.memory.shelf import MEAN, ROWS, SCORING, SPREAD, TOKENS, Segment, Shelf
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.device import DTYPES
from infinipot_llm.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import ReadStats

if TYPE_CHECKING:
    from infinipot_llm.memory.memory import DocumentMemory

NULL = "null"
NULL_SCALE = 1024.0
"""What null scores are multiplied by: the typical one is 1 / R, which float16 cannot tell from 0 otherwise."""

COPIED_ROWS = 1024
_PARTS = {
    "model": "another model, or its weights in another dtype",
    "tokenizer": "another tokenizer",
    "prompt": "another chat template or prompt",
}


def fingerprints(adapter: Adapter, form: PromptForm) -> dict[str, str]:
    """Return what a memory must share with the model that answers from it."""
    prompt = json.dumps([form.prefix, form.before_question, form.after_question, form.between])
    return {
        "model": model_fingerprint(adapter),
        "tokenizer": tokenizer_fingerprint(form.codec),
        "prompt": hashlib.sha256(prompt.encode()).hexdigest(),
    }


def _dtype(adapter: Adapter) -> str:
    return str(adapter.dtype).removeprefix("torch.")


def write_text(draft: Draft, text: TokenizedText) -> None:
    """Write tokens and documents: ids, starts, ends [N] int32, first [documents + 1] int64, documents (JSON bytes)."""
    draft.add("ids", text.ids)
    draft.add("starts", text.starts)
    draft.add("ends", text.ends)
    draft.add("first", text.first)
    documents = [
        {
            "name": d.name,
            "text": d.text,
            "pages": [[p.label, p.start, p.end] for p in d.pages],
            "turns": [[t.start, t.end, t.speaker, t.time] for t in d.turns],
            "notes": list(d.notes),
            "content_hash": d.content_hash,
        }
        for d in text.documents
    ]
    data = json.dumps(documents, ensure_ascii=True).encode("ascii")
    draft.add("documents", np.frombuffer(data, np.uint8))


def read_text(file: MemoryFile) -> TokenizedText:
    """Read what `write_text` wrote.

    Raises:
        MemoryFileError: It contradicts itself.
    """
    damaged = MemoryFileError(f"{file.path.name} contradicts itself: read the document again.")
    try:
        documents = tuple(_document(d) for d in json.loads(file.rows("documents").tobytes()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise damaged from error
    tokens = file.shape("ids")[0]
    for name in ("ids", "starts", "ends"):
        file.expect(name, np.int32, (tokens,))
    file.expect("first", np.int64, (len(documents) + 1,))
    text = TokenizedText(documents, *(file.rows(name) for name in ("ids", "starts", "ends", "first")))
    if not tokens or text.first[0] != 0 or text.first[-1] != tokens or (text.first[1:] < text.first[:-1]).any():
        raise damaged
    for number, document in enumerate(documents):
        inside = slice(int(text.first[number]), int(text.first[number + 1]))
        starts, ends = text.starts[inside], text.ends[inside]
        if (starts < 0).any() or (starts > ends).any() or (ends > len(document.text)).any():
            raise damaged
    return text


def _document(d: dict[str, Any]) -> Document:
    """Read a document that `write_text` wrote.

    Raises:
        TypeError: Something in it is of another type than was written.
        ValueError: Pages or turns do not describe the text.
    """
    pages = tuple(Page(number, *page) for number, page in enumerate(d["pages"], start=1))
    turns = tuple(Turn(*turn) for turn in d["turns"])
    texts = [d["name"], d["text"], *d["notes"], *(p.label or "" for p in pages), *(t.speaker or "" for t in turns)]
    offsets = [x for p in pages for x in (p.start, p.end)] + [x for t in turns for x in (t.start, t.end)]
    times = [t.time for t in turns if t.time is not None]
    if not (
        all(type(x) is str for x in texts)
        and all(type(x) is int for x in offsets)
        and all(type(x) in (int, float) for x in times)
    ):
        raise TypeError("document")
    return Document(d["name"], d["text"], pages, notes=tuple(d["notes"]), turns=turns)


def as_saved(null: Tensor) -> Tensor:
    """Round null scores as a file holds them, so that a memory answers the same before and after it was saved."""
    return (null * NULL_SCALE).to(torch.float16).to(torch.float32) / NULL_SCALE


def write_rest(
    draft: Draft, setup: Setup, text: TokenizedText, stats: ReadStats, pot: Pot, null: Tensor | None
) -> None:
    """Write everything that stands behind the shelf, and finish the file.

    Args:
        draft: The file, with the shelf in it where there is one.
        setup: What read.
        text: What was read.
        stats: What it cost.
        pot: What is left of it.
        null: [R, n] float32, the null scores of the shelf's rows; None without a shelf.
    """
    if null is not None:
        draft.add(NULL, (null * NULL_SCALE).to(torch.float16).cpu().numpy())  # exact: see `as_saved`
    write_text(draft, text)
    whole = null is not None and setup.layout.whole and len(draft.rows(TOKENS)) == len(text)
    about = {
        "made_by": version("infinipot-llm"),
        "model": setup.model,
        "family": setup.adapter.family,
        "dtype": _dtype(setup.adapter),
        "fingerprints": fingerprints(setup.adapter, setup.form),
        "config": setup.config.to_dict(),
        "stats": asdict(stats),
        "layout": asdict(setup.layout) if null is not None else None,
        "heads": setup.heads.to_dict() if null is not None else None,
        "pot": write_pot(draft, pot, setup.prefix[0].shape[2], len(text), whole),
    }
    draft.finish(about)


def write_whole(memory: DocumentMemory, target: Path) -> None:
    """Write a memory whose shelf has several segments, or none, to one file, atomically.

    Raises:
        StoreError: The file cannot be written.
    """
    draft = Draft(beside(target))
    try:
        null = None
        if memory.shelved is not None:
            shelf, null = memory.shelved.shelf, memory.shelved.null
            for name in (ROWS, SCORING):
                for segment in shelf.segments:
                    for start in range(0, len(segment), COPIED_ROWS):
                        rows = segment.file.rows(name, start, start + COPIED_ROWS)
                        draft.write(rows)
                draft.end(name, np.uint8, (len(shelf), rows.shape[1]))
            draft.add(TOKENS, shelf.tokens)
            draft.add(MEAN, shelf.normal.mean.cpu().numpy())
            draft.add(SPREAD, shelf.normal.spread.cpu().numpy())
        write_rest(draft, memory.setup, memory.text, memory.stats, memory.pot, null)
        with full_disk_told(target):
            draft.path.replace(target)
    except BaseException:
        draft.discard()
        raise


def open_memory(path: Path, setup: Setup) -> DocumentMemory:
    """Open a saved memory and check that this model may answer from it.

    Args:
        path: The file.
        setup: The model, and how to answer; how the memory was read stands in the file.

    Raises:
        MemoryFileError: The file is damaged, or was made with another model, tokenizer, prompt or version.
    """
    from infinipot_llm.memory.memory import DocumentMemory, Shelved

    file = MemoryFile(path)
    try:
        about, adapter, asking = file.about, setup.adapter, setup.config
        mine = fingerprints(adapter, setup.form)
        other = [what for part, what in _PARTS.items() if about["fingerprints"].get(part) != mine[part]]
        if other:
            called = str(about["model"] or about["family"])[:100]
            made = about.get("dtype")
            how = f", with dtype={made!r} or --dtype {made}" if made in DTYPES and made != _dtype(adapter) else ""
            raise MemoryFileError(
                f"{path.name} was made with {' and '.join(other)}: load the model it was made with "
                f"({called if called.isprintable() else 'of no name'}{how}), or read the document again."
            )
        if about["config"].get("version") != asking.version:
            raise MemoryFileError(
                f"{path.name} was written with settings of version {str(about['config'].get('version'))[:20]}, and "
                f"this release knows version {asking.version}: read the document again."
            )
        if asking.recalled == "load" and about["config"].get("shelf") == "keys":
            raise MemoryFileError(
                f"{path.name} holds no keys and values to load: ask with recalled='read', or read the document again "
                "with shelf='int8'."
            )
        config = replace(
            PotConfig.from_dict(about["config"]),
            recall=asking.recall,
            recalled=asking.recalled,
            recall_order=asking.recall_order,
            followup=asking.followup,
            max_new_tokens=asking.max_new_tokens,
        )
        adapter.check_budget(config.budget)
        if type(config.policy) is not str:
            raise TypeError("policy")
        setup = replace(setup, config=config)
        stats = _stats(about["stats"])
        text = read_text(file)
        if text.ids.min() < 0 or text.ids.max() >= adapter.vocabulary:
            raise ValueError("ids")
        if (about["layout"] is None) != (config.shelf == "off"):
            raise ValueError("shelf")
        shelved = None
        if about["layout"] is not None:
            layout = Layout(**{**about["layout"], "scoring": tuple(about["layout"]["scoring"])})
            heads = Heads.from_dict(about["heads"], adapter.layers, setup.query_heads)
            if heads.heads != setup.heads.heads:  # else today's weights and judge count: they are of asking
                setup = replace(setup, heads=heads)
            if layout != setup.layout:
                raise ValueError("layout")
            _check_shelf(file, setup.layout, len(setup.heads.heads), len(text))
            shelf = Shelf([Segment(file, setup.layout, adapter.device)])
            null = torch.from_numpy(file.rows(NULL)).to(adapter.device).to(torch.float32) / NULL_SCALE
            shelved = Shelved(shelf, null)
        of_pot, finished = about["pot"], setup
        check_pot(file, of_pot, setup, len(text), len(shelved.shelf) if shelved else 0)

        def pot() -> Pot:
            return read_pot(file, of_pot, finished, shelved.shelf if shelved else None)

    except MemoryFileError:
        file.close()
        raise
    except (
        KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError, InfiniPotError
    ) as error:  # fmt: skip
        file.close()
        raise MemoryFileError(f"{path.name} contradicts itself: read the document again.") from error
    return DocumentMemory(setup, text, stats, pot=pot, shelved=shelved, file=file)


def _stats(values: dict[str, Any]) -> ReadStats:
    """Read what reading cost.

    Raises:
        TypeError: Something in it is no number, or not there.
        ValueError: A number is negative or not finite.
    """
    stats = ReadStats(**values)
    numbers = asdict(stats)
    seconds = numbers.pop("seconds")
    if not all(type(x) is int for x in numbers.values()) or type(seconds) not in (int, float):
        raise TypeError("stats")
    if not all(x >= 0 and math.isfinite(x) for x in (*numbers.values(), seconds)):
        raise ValueError("stats")
    return stats


def _check_shelf(file: MemoryFile, layout: Layout, heads: int, tokens: int) -> None:
    """Refuse a shelf that does not fit model and text.

    Raises:
        MemoryFileError: It does not.
        ValueError: It does not.
    """
    rows, vectors = file.shape(TOKENS)[0], 2 * layout.layers * layout.kv_heads
    file.expect(TOKENS, np.int32, (rows,))
    file.expect(ROWS, np.uint8, (rows, layout.rest_packing.row_bytes))
    file.expect(SCORING, np.uint8, (rows, layout.scoring_packing.row_bytes))
    file.expect(NULL, np.float16, (rows, heads))
    check_normal(file, MEAN, SPREAD, (vectors, layout.dim))
    held = file.rows(TOKENS)
    if not rows or held[0] < 0 or held[-1] >= tokens or (held[1:] <= held[:-1]).any():
        raise ValueError("tokens")
    if not np.isfinite(file.rows(NULL)).all():
        raise ValueError(NULL)
