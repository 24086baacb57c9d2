"""LangChain's standard integration tests, with real weights and without a network."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_infinipot import ChatInfiniPot
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests import chat_models as standard
from reportlab.pdfgen.canvas import Canvas

from infinipot_llm.models import catalogue

MODEL = "smollm2-135m"

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(not catalogue.is_fetched(MODEL), reason=f"run `infinipot models get {MODEL}`"),
]


def small_pdf() -> bytes:
    """Return a PDF of one line, as the one at w3.org is."""
    out = io.BytesIO()
    canvas = Canvas(out)
    canvas.drawString(72, 700, "Dummy PDF file")
    canvas.save()
    return out.getvalue()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard.httpx, "get", lambda *a, **k: SimpleNamespace(content=small_pdf()))


class TestChatInfiniPotStandard(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatInfiniPot

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "budget": 1024, "max_tokens": 8, "store": False, "citations": False}

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> BaseChatModel:
        """Give answers that are JSON room; and sampled, since greedy ones of 135M weights repeat a string for ever."""
        params = {**self.standard_chat_model_params, **self.chat_model_params, **getattr(request, "param", {})}
        if "structured" in request.node.name or "json" in request.node.name:
            params |= {"max_tokens": 64, "temperature": 0.7, "seed": 1}
        return self.chat_model_class(**params)

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return str(catalogue.model_dir(MODEL))

    @property
    def supported_usage_metadata_details(self) -> Any:
        both = ["cache_read_input", "cache_creation_input"]
        return {"invoke": both, "stream": both}

    def invoke_with_cache_creation_input(self, *, stream: bool = False) -> AIMessage:
        return self._ask_of(f"The key of room {id(object())} hangs behind the door.", 1, stream=stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._ask_of("The key hangs behind the door.", 2, stream=stream)

    def _ask_of(self, text: str, times: int, *, stream: bool) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params)
        block = {"type": "text-plain", "text": text, "mime_type": "text/plain"}
        message = HumanMessage([block, {"type": "text", "text": "Where is the key?"}])
        said: Any = None
        for _ in range(times):
            if not stream:
                said = model.invoke([message])
                continue
            said = None
            for chunk in model.stream([message]):
                said = chunk if said is None else said + chunk
        assert isinstance(said, AIMessage)
        return said
