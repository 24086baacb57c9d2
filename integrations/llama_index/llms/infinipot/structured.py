"""Answers that follow a pydantic model: decoding is held to its JSON schema, which even a tiny model then keeps to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import llama_index.core.instrumentation as instrument
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.bridge.pydantic import BaseModel, ValidationError
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import BasePromptTemplate

from infinipot_llm.errors import QuestionError

if TYPE_CHECKING:
    from llama_index.core.prompts import PromptTemplate

Model = TypeVar("Model", bound=BaseModel)
dispatcher = instrument.get_dispatcher(__name__)


class StructuredLLM(CustomLLM):
    """The part of the model that answers in JSON."""

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Answer a prompt with an object.

        Args:
            output_cls: What the answer is to be.
            prompt: The prompt.
            llm_kwargs: Options of `chat`.
            **prompt_args: What the prompt's places hold.

        Raises:
            QuestionError: The answer was cut short, or breaks a rule of the class that a JSON schema does not hold.
        """
        messages = self._begun(output_cls, prompt, prompt_args)
        response = self.chat(messages, schema=output_cls.model_json_schema(), **(llm_kwargs or {}))
        return _parsed(output_cls, response)

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Answer a prompt with an object without blocking the event loop; see `structured_predict`."""
        messages = self._begun(output_cls, prompt, prompt_args)
        response = await self.achat(messages, schema=output_cls.model_json_schema(), **(llm_kwargs or {}))
        return _parsed(output_cls, response)

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model, None, None]:
        """Yield the one object that `structured_predict` returns: half an object is not one of its class."""
        yield self.structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model, None]:
        """Return what yields the one object, without blocking the event loop; see `stream_structured_predict`."""

        async def one() -> AsyncGenerator[Model, None]:
            yield await self.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

        return one()

    def _begun(
        self, output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: dict[str, Any]
    ) -> Sequence[ChatMessage]:
        event = LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        dispatcher.event(event)
        return self._get_messages(prompt, **prompt_args)


def _parsed(output_cls: type[Model], response: ChatResponse) -> Model:
    try:
        result = output_cls.model_validate_json(response.message.content or "")
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise QuestionError(
            f"the answer is no {output_cls.__name__} ({problem}): raise max_new_tokens, or loosen the class."
        ) from error
    dispatcher.event(LLMStructuredPredictEndEvent(output=result))
    return result
