"""InfiniPotDocumentTool: lets any tool-calling model ask a document that this machine's model has read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, Field, model_validator

from infinipot_llm.answering.prompt import Message
from infinipot_llm.documents import Document
from infinipot_llm.documents.document import each_once
from langchain_infinipot import replies
from langchain_infinipot.errors import InvalidRequestError, QuestionTooLongError, langchain_errors
from langchain_infinipot.settings import CONFIG, InfiniPotSettings
from langchain_infinipot.sources import as_sources

if TYPE_CHECKING:
    from infinipot_llm.answering.answer import Answer


class AskDocument(BaseModel):
    """What the calling model gives: a question, and nothing that names a file."""

    question: str = Field(description="A complete question about the document, understandable by itself.")


class InfiniPotDocumentTool(InfiniPotSettings, BaseTool):
    """A tool that answers questions about documents; which ones is decided here, and not by the model that calls it.

    Example:
        ```python
        from langchain.agents import create_agent
        from langchain_infinipot import InfiniPotDocumentTool

        agent = create_agent(any_tool_calling_model, tools=[InfiniPotDocumentTool(document="report.pdf")])
        ```

    The content of the tool's message is the answer with its quotes and pages; the artifact is a dict with the answer,
    its citations and what it cost.

    Attributes:
        document: What is asked; see InfiniPotSettings.
    """

    model_config = CONFIG

    name: str = "ask_document"
    description: str = ""
    args_schema: Any = AskDocument
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True

    @model_validator(mode="after")
    def _described(self) -> Self:
        """Say in the description which documents there are, since that is all that the calling model knows of them."""
        if not self.document:
            raise ValueError("no document was given: name at least one (document=...).")
        if not self.description:
            names = ", ".join(_name(source) for source in as_sources(self.document))
            self.description = (
                f"Answers a question about {names}, with quotes and page numbers. The whole text was read. "
                "Ask one complete question at a time; earlier questions are not remembered."
            )
        return self

    def _run(self, question: str, run_manager: CallbackManagerForToolRun | None = None) -> tuple[str, dict[str, Any]]:
        engine, documents = self._ready(question)
        with langchain_errors():
            try:
                reply = engine.respond([Message("user", question)], documents, **self.options())
            except (ValueError, QuestionTooLongError) as error:  # the model that asked can ask otherwise
                raise ToolException(str(error)) from error
        return _told(reply.answer), replies.metadata(reply, self.model) | {"answer": reply.answer.text}

    async def _arun(
        self, question: str, run_manager: AsyncCallbackManagerForToolRun | None = None
    ) -> tuple[str, dict[str, Any]]:
        engine, documents = await asyncio.to_thread(self._ready, question)
        with langchain_errors():
            try:
                reply = await engine.arespond([Message("user", question)], documents, **self.options())
            except (ValueError, QuestionTooLongError) as error:
                raise ToolException(str(error)) from error
        return _told(reply.answer), replies.metadata(reply, self.model) | {"answer": reply.answer.text}

    def _ready(self, question: str) -> tuple[Any, tuple[Document, ...]]:
        """Return who answers, and the documents; what fails here is not the calling model's fault."""
        if not question.strip():
            raise ToolException("the question is empty: ask something about the document.")
        with langchain_errors():
            engine = self.engine()
            documents = each_once(self.bound(self.limits()))
            if not documents:
                raise InvalidRequestError("no document was given: name at least one (document=...).")
            return engine, documents


def _told(answer: Answer) -> str:
    """Return an answer with its evidence, as the calling model reads it."""
    lines = [answer.text.strip() or "(no answer)"]
    for citation in answer.citations:
        page = citation.page_label or citation.page
        lines.append(f'- {citation.document}, page {page}: "{citation.quote.strip()}"')
    return "\n".join(lines)


def _name(source: Any) -> str:
    return source.name if isinstance(source, Document) else str(source).replace("\\", "/").rsplit("/", 1)[-1]
