"""InfiniPot: a model, a budget, and what to do with them: read, ask, load what was read before."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any

from infinipot_llm.answering.answer import Answer
from infinipot_llm.answering.prompt import GENERIC, PromptForm
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.documents.document import distinctly_named
from infinipot_llm.documents.language import dominant_language
from infinipot_llm.errors import BudgetError, DocumentError, MemoryFileError, QuestionError
from infinipot_llm.memory.asking import check_asked
from infinipot_llm.memory.file import FORMAT
from infinipot_llm.memory.heads import Heads
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.memory.remember import MOST_SEGMENTS, expected_bytes, in_one_file, remember
from infinipot_llm.memory.saved import fingerprints, open_memory
from infinipot_llm.memory.setup import Setup
from infinipot_llm.memory.store import MemoryStore
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.catalogue import DEFAULT_MODEL
from infinipot_llm.models.fingerprint import model_fingerprint
from infinipot_llm.models.load import load_model, load_shared
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.distill import Tracer
from infinipot_llm.pot.plan import plan
from infinipot_llm.pot.reader import Progress

_log = logging.getLogger(__name__)


class InfiniPot:
    """A local language model that reads documents of any length through a cache of fixed size."""

    def __init__(
        self,
        adapter: Adapter,
        codec: TextCodec,
        config: PotConfig | None = None,
        heads: Heads | None = None,
        name: str = "",
    ) -> None:
        """Put a loaded model to work.

        Args:
            adapter: The model, as models.load.load_model returns it.
            codec: Its tokenizer.
            config: Budget and scoring; None takes the defaults, with a budget no larger than the trained window.
            name: What the model is called; saved memories note it.
            heads: The retrieval heads; None takes a list that suits most models (see `infinipot calibrate`).

        Raises:
            BudgetError: The budget is beyond what the model can position.
        """
        self.adapter = adapter
        self.name = name
        self._setup: Setup | None = None
        self.form = PromptForm.for_tokenizer(codec)
        self.heads = heads or Heads.default(adapter.layers, int(adapter.config.num_attention_heads))
        self.config = config or PotConfig(budget=min(PotConfig().budget, adapter.window))
        adapter.check_budget(self.config.budget)

    @classmethod
    def from_pretrained(
        cls,
        model: str = DEFAULT_MODEL,
        *,
        budget: int | None = None,
        config: PotConfig | None = None,
        device: str = "auto",
        dtype: str = "auto",
        download: bool = False,
        shared: bool = False,
        **knobs: Any,
    ) -> InfiniPot:
        """Load a model.

        Args:
            model: A name of the catalogue, a folder, or a hub id.
            budget: Slots per layer and KV head; None: 4,096, or the trained window where that is smaller.
            config: A whole configuration, instead of budget and knobs.
            device: "auto", "cpu", "cuda", "mps".
            dtype: "auto", "float32", "bfloat16", "float16".
            download: Fetch the model when it is not on this machine.
            shared: Share the weights with all others in this process that ask so for the same model, device and dtype;
                they stay loaded until it ends, and `close` must not be called.
            **knobs: Further fields of PotConfig.

        Raises:
            ModelError: The model cannot be used; the sentence says why and what to do.
            BudgetError: A setting is out of range.
        """
        if config is not None and (budget is not None or knobs):
            raise BudgetError("give either a whole config, or budget and knobs, not both.")
        # Wrong settings are refused before gigabytes are loaded.
        unknown = sorted(set(knobs) - {f.name for f in fields(PotConfig)})
        if unknown:
            raise BudgetError(f"unknown setting {unknown[0]!r}: PotConfig lists the settings there are.")
        settings: dict[str, Any] = knobs if budget is None else {**knobs, "budget": budget}
        asked = config or PotConfig(**settings)
        load = load_shared if shared else load_model
        adapter, codec = load(model, device=device, dtype=dtype, download=download)
        if config is None and budget is None:
            asked = replace(asked, budget=min(asked.budget, adapter.window))
        query_heads = int(adapter.config.num_attention_heads)
        heads = Heads.known(model, lambda: model_fingerprint(adapter), adapter.layers, query_heads)
        if not heads.calibrated and asked.shelf != "off":
            _warn_of_heads(model)
        return cls(adapter, codec, asked, heads, model)

    def __repr__(self) -> str:
        a = self.adapter
        name = f"{self.name}: " if self.name else ""
        return f"InfiniPot({name}{a.family}, {len(a.windows)} layers on {a.device} in {a.dtype}, {self.config!r})"

    def read(
        self,
        documents: Document | Sequence[Document],
        *,
        question: str | None = None,
        max_new_tokens: int | None = None,
        store: MemoryStore | None = None,
        fresh: bool = False,
        progress: Progress | bool | None = None,
        tracer: Tracer | None = None,
    ) -> DocumentMemory:
        """Read one or several documents, whole and in order.

        Without a store, the shelf is a file in the cache folder that goes when the memory does; `save` keeps it.

        Args:
            documents: What to read.
            question: The question that will be asked, when it is known: it then decides what is kept (the catalyst).
                None: a set of generic questions in the document's language does.
            max_new_tokens: Slots to leave for the answer to that question; None: as the configuration says.
            store: Where memories are kept: documents read before, with this model and these settings, are not read
                again. A memory read for a known question is not kept there.
            fresh: Read again although the store holds them.
            progress: A callable told after every forward pass, or True for a progress bar (lines, in a file).
            tracer: Told about every distillation.

        Returns:
            A memory that can be asked several times.

        Raises:
            DocumentError: There is nothing to read.
            QuestionError: The question is empty.
            BudgetError: The budget has no room for prompt, catalyst, question and answer.
            StoreError: The disk has no room for the shelf, or the store cannot be used.
        """
        several = _several(documents)
        config, form = self.config, self.form
        if question is not None:
            catalysts = [form.question(question)]
            reserve = len(catalysts[0]) + (max_new_tokens or config.max_new_tokens)
        else:
            catalysts, reserve = self._without_question(several, config)
        with self.adapter.lock:
            text = form.codec.document(several)
        if not len(text):
            raise DocumentError("the document has no text: there is nothing to read.")
        from infinipot_llm.progress import reading_bar

        def remember_in(scratch: Path | None, **then: Any) -> DocumentMemory:
            with reading_bar(len(text), progress) as told:
                return remember(
                    self.setup, text, catalysts, reserve, scratch,
                    known=question is not None, progress=told, tracer=tracer, **then,
                )  # fmt: skip

        if config.shelf == "off":
            return remember_in(None)
        if store is None or question is not None:
            return _unstored(remember_in, store)
        key = self.key(several)
        with store.writing(key):
            found = None if fresh else store.get(key)
            if found is not None:
                try:
                    return self.load(found, documents=several)
                except MemoryFileError as error:  # damaged, or gone in this moment: reading again mends both
                    _log.warning("a stored memory cannot be used, its documents are read again: %s", error)
                    store.remove(key)
            store.check_size(expected_bytes(self.setup, len(text)))
            described = {
                "documents": [d.name for d in several][:100],
                "tokens": len(text),
                "model": self.adapter.family,
            }
            return remember_in(store.scratch(key), placed=lambda scratch: store.put(key, scratch, described))

    def load(self, path: str | Path, *, documents: Sequence[Document] | None = None) -> DocumentMemory:
        """Open a memory that was saved; nothing is read again.

        Args:
            path: What `DocumentMemory.save` or `infinipot read` wrote.
            documents: The documents it must hold; they lend their names, which may have changed since.

        Raises:
            MemoryFileError: The file is missing, damaged, of another version or model, or holds other documents.
        """
        with self.adapter.lock:
            memory = open_memory(Path(path).expanduser(), self.setup)
        return memory if documents is None else memory.renamed(tuple(documents))

    def shelf_size(self, documents: Sequence[Document]) -> tuple[int, int]:
        """Return the tokens of documents, and the bytes that their memory will take on disk (0 without a shelf).

        Raises:
            BudgetError: Reading them would fail: the budget has no room.
        """
        tokens = len(self.form.codec.document(tuple(documents)))
        catalysts, reserve = self._without_question(documents, self.config)
        plan(self.config, self.adapter.window, tokens, len(self.form.prefix), max(map(len, catalysts)), reserve)
        if self.config.shelf == "off":
            return tokens, 0
        return tokens, expected_bytes(self.setup, tokens)

    def key(self, documents: Sequence[Document]) -> str:
        """Return what a memory of these documents is kept under in a store, 64 hex digits.

        It covers everything that decides what reading leaves behind: the documents' contents, model, tokenizer, prompt,
        which heads retrieve (not what each counts, which is of asking) and the settings of reading. The names of
        documents count where there are several, since the model reads them.
        """
        names = [d.name for d in documents] if len(documents) > 1 else []
        return self._key([d.content_hash for d in documents], names)

    def key_of(self, content_hash: str) -> str:
        """Return the key of a memory of one document that nobody has at hand, by the document's content hash."""
        return self._key([content_hash], [])

    def _key(self, hashes: list[str], names: list[str]) -> str:
        asking = {"recall", "recalled", "recall_order", "followup", "chunk"}
        read = {k: v for k, v in self.config.to_dict().items() if k not in asking}
        read["max_new_tokens"] = self.config.left_for_answer
        parts = [FORMAT, fingerprints(self.adapter, self.form), self.heads.heads, read, hashes, names]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def extend(
        self, memory: DocumentMemory, more: Document | Sequence[Document], *, store: MemoryStore | None = None
    ) -> DocumentMemory:
        """Read on: return a memory of the documents so far and of more behind them; the old one stays as it is.

        Both share the shelf of what was read before; nothing of it is read again.

        Args:
            memory: Read by this model.
            more: What comes next: further documents, or the next part of a transcript that grows.
            store: Whose folder holds what is read now, as long as the new memory lasts; None: the default store's.

        Raises:
            DocumentError: There is nothing to read.
            StoreError: The disk has no room.
        """
        several = _several(more, memory.documents)
        if memory.setup.adapter is not self.adapter:
            raise MemoryFileError("this memory was read by another model: read on with that one, or read again.")
        catalysts, reserve = self._without_question((*memory.documents, *several), memory.config)
        if memory.shelved is not None and len(memory.shelved.shelf.segments) >= MOST_SEGMENTS:
            memory = _unstored(partial(in_one_file, memory), store)

        with self.adapter.lock:
            text = self.form.codec.document(several, memory.text)

        def remember_in(scratch: Path | None, **then: Any) -> DocumentMemory:
            return remember(memory.setup, text, catalysts, reserve, scratch, base=memory, **then)

        return remember_in(None) if memory.shelved is None else _unstored(remember_in, store)

    def ask(
        self,
        documents: Document | Sequence[Document],
        question: str,
        *,
        store: MemoryStore | None = None,
        fresh: bool = False,
        progress: Progress | bool | None = None,
        **options: Any,
    ) -> Answer:
        """Read documents and answer a question about them.

        With a shelf, they are read for any question and this one is answered by recall; without one, the question is
        the catalyst while they are read. Without a store they are read anew with every call: to ask more than once,
        keep what `read` returns, or give a store.

        Args:
            documents: What to read.
            question: What to ask.
            store: As in `read`.
            fresh: As in `read`.
            progress: As in `read`.
            **options: Options of DocumentMemory.ask.

        Raises:
            QuestionError: The question is empty or too long, or an option is out of range; nothing was read then.
        """
        check_asked(self.form, self.config.budget, question, options)
        if self.config.shelf == "off" and options.get("followup") == "recall":
            raise QuestionError("without a shelf nothing can be recalled: ask with followup='reuse' or 'reread'.")
        catalyst = question if self.config.shelf == "off" else None
        limit = options.get("max_new_tokens")
        memory = self.read(
            documents, question=catalyst, max_new_tokens=limit, store=store, fresh=fresh, progress=progress
        )
        return memory.ask(question, **options)

    def generic_questions(self, documents: Sequence[Document]) -> tuple[str, ...]:
        """Return the questions that stand in for unknown ones, in the language of the documents."""
        return self._generic(documents, self.config)

    def _generic(self, documents: Sequence[Document], config: PotConfig) -> tuple[str, ...]:
        if config.catalysts is not None:
            return config.catalysts
        return GENERIC[dominant_language("\n".join(d.text for d in documents))]

    @property
    def setup(self) -> Setup:
        """The model and its settings, as memories keep them."""
        if self._setup is None or self._setup.config is not self.config or self._setup.heads is not self.heads:
            self._setup = Setup(self.adapter, self.form, self.heads, self.config, self.name)
        return self._setup

    def _without_question(self, documents: Sequence[Document], config: PotConfig) -> tuple[list[list[int]], int]:
        """Return the catalysts for a reading without a question, and the slots to leave free behind it."""
        catalysts = [self.form.question(q) for q in self._generic(documents, config)]
        return catalysts, len(self.form.question("?")) + config.question_tokens + config.left_for_answer

    def close(self) -> None:
        """Give the model back as it was before it was switched to reading through slots."""
        self.adapter.close()

    def __enter__(self) -> InfiniPot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache
def _warn_of_heads(model: str) -> None:
    """Warn of a model whose retrieval heads were not measured, once per process."""
    _log.warning(
        "the retrieval heads of this model were not measured: passages are found by shared words mostly; "
        "`infinipot calibrate %s` measures them once.",
        model,
    )


def _several(documents: Document | Sequence[Document], before: tuple[Document, ...] = ()) -> tuple[Document, ...]:
    """Return what was given as documents, no two of one name, and none of the name of one that was read before.

    Raises:
        DocumentError: It is nothing, or holds something else.
    """
    several = (documents,) if isinstance(documents, Document) else tuple(documents)
    if not several:
        raise DocumentError("no document was given: name at least one.")
    if not all(isinstance(d, Document) for d in several):
        raise DocumentError("this is no Document: load a file with Document.from_file(path) first.")
    return distinctly_named((*before, *several))[len(before) :]


def _unstored(remember_in: Callable[..., DocumentMemory], store: MemoryStore | None) -> DocumentMemory:
    """Read into a file that goes when the memory does; the next process clears what a killed one left.

    Args:
        remember_in: Reads into a file.
        store: In whose folder; None: the default one's.
    """
    folder = store or MemoryStore()
    scratch = folder.scratch(secrets.token_hex(32))
    memory = None
    try:
        memory = remember_in(scratch, unused=lambda: folder.discard(scratch))
        return memory
    finally:
        if memory is None or memory.shelved is None:  # it failed, or wrote nothing
            folder.discard(scratch)
