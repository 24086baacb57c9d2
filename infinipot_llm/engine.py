"""InfiniPot: a model, a budget, and the two things to do with them: read, and ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from types import TracebackType
from typing import Any

from infinipot_llm.answering.answer import Answer
from infinipot_llm.answering.prompt import GENERIC, PromptForm
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.documents.language import dominant_language
from infinipot_llm.errors import BudgetError, DocumentError
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.catalogue import DEFAULT_MODEL
from infinipot_llm.models.load import load_model
from infinipot_llm.models.text import TextCodec
from infinipot_llm.pot.distill import Tracer
from infinipot_llm.pot.reader import Progress, Reader


class InfiniPot:
    """A local language model that reads documents of any length through a cache of fixed size."""

    def __init__(self, adapter: Adapter, codec: TextCodec, config: PotConfig | None = None) -> None:
        """Put a loaded model to work.

        Args:
            adapter: The model, as models.load.load_model returns it.
            codec: Its tokenizer.
            config: Budget and scoring; None takes the defaults, with a budget no larger than the trained window.

        Raises:
            BudgetError: The budget is beyond what the model can position.
        """
        self.adapter = adapter
        self.form = PromptForm.for_tokenizer(codec)
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
        adapter, codec = load_model(model, device=device, dtype=dtype, download=download)
        if config is None and budget is None:
            asked = replace(asked, budget=min(asked.budget, adapter.window))
        return cls(adapter, codec, asked)

    def __repr__(self) -> str:
        a = self.adapter
        return f"InfiniPot({a.family}, {a.layers} layers on {a.device} in {a.dtype}, {self.config!r})"

    def read(
        self,
        documents: Document | Sequence[Document],
        *,
        question: str | None = None,
        progress: Progress | bool | None = None,
        tracer: Tracer | None = None,
    ) -> DocumentMemory:
        """Read one or several documents, whole and in order.

        Args:
            documents: What to read.
            question: The question that will be asked, when it is known: it then decides what is kept (the catalyst).
                None: a set of generic questions in the document's language does.
            progress: A callable told after every forward pass, or True for a progress bar.
            tracer: Told about every distillation.

        Returns:
            A memory that can be asked several times.

        Raises:
            DocumentError: There is nothing to read.
            QuestionError: The question is empty.
            BudgetError: The budget has no room for prompt, catalyst, question and answer.
        """
        several = (documents,) if isinstance(documents, Document) else tuple(documents)
        if not several:
            raise DocumentError("no document was given: name at least one.")
        if not all(isinstance(d, Document) for d in several):
            raise DocumentError("this is no Document: load a file with Document.from_file(path) first.")
        config, form = self.config, self.form
        if question is not None:
            catalysts = [form.question(question)]
            reserve = len(catalysts[0]) + config.max_new_tokens
        else:
            catalysts = [form.question(q) for q in self.generic_questions(several)]
            reserve = len(form.question("?")) + config.question_tokens + config.max_new_tokens
        with self.adapter.lock:
            text = form.codec.document(several)
            reader = Reader(self.adapter, config)
            from infinipot_llm.progress import reading_bar

            with reading_bar(len(text), progress) as told:
                pot, stats = reader.read(text, form.prefix, catalysts, reserve, progress=told, tracer=tracer)
        return DocumentMemory(self.adapter, form, text, pot, stats, config)

    def ask(
        self,
        documents: Document | Sequence[Document],
        question: str,
        *,
        progress: Progress | bool | None = None,
        **options: Any,
    ) -> Answer:
        """Read documents with the question as catalyst, and answer it.

        Args:
            documents: What to read.
            question: What to ask.
            progress: As in `read`.
            **options: Options of DocumentMemory.ask.
        """
        return self.read(documents, question=question, progress=progress).ask(question, **options)

    def generic_questions(self, documents: Sequence[Document]) -> tuple[str, ...]:
        """Return the questions that stand in for unknown ones, in the language of the documents."""
        if self.config.catalysts is not None:
            return self.config.catalysts
        return GENERIC[dominant_language("\n".join(d.text for d in documents))]

    def close(self) -> None:
        """Give the model back as it was before it was switched to reading through slots."""
        self.adapter.close()

    def __enter__(self) -> InfiniPot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
