"""LangChain's standard tests that need no real weights; those with real weights are in integration_tests."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import BaseTool
from langchain_infinipot import ChatInfiniPot, InfiniPotDocumentTool, InfiniPotRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests, ToolsIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests, ToolsUnitTests

from infinipot_llm.assistant import Assistant
from infinipot_llm.documents import Document
from infinipot_llm.engine import InfiniPot

LONG = Document.from_text("\n\n".join(f"Paragraph {i}: the lamp of room {i} is lit." for i in range(40)), name="a.txt")


class TestChatInfiniPotUnits(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatInfiniPot

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2-135m", "budget": 1024}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return True


class _WithTinyModel:
    """Hands the random model of a fixture to properties, which the suites read."""

    assistant: Any = None

    @pytest.fixture(autouse=True)
    def _tiny(self, tiny_llm: InfiniPot) -> None:
        type(self).assistant = Assistant(tiny_llm)


class TestInfiniPotRetrieverStandard(_WithTinyModel, RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return InfiniPotRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"assistant": self.assistant, "document": LONG}

    @property
    def retriever_query_example(self) -> str:
        return "When is the lamp of room 7 lit?"


class TestInfiniPotDocumentToolUnits(ToolsUnitTests):
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return InfiniPotDocumentTool

    @property
    def tool_constructor_params(self) -> dict[str, Any]:
        return {"document": LONG}

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"question": "When is the lamp of room 7 lit?"}


class TestInfiniPotDocumentToolStandard(_WithTinyModel, ToolsIntegrationTests):
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return InfiniPotDocumentTool

    @property
    def tool_constructor_params(self) -> dict[str, Any]:
        return {"assistant": self.assistant, "document": LONG, "max_tokens": 4}

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"question": "When is the lamp of room 7 lit?"}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_and_constructing_load_no_torch() -> None:
    code = "import sys, langchain_infinipot as l; l.ChatInfiniPot(); print('torch' in sys.modules, l.__version__)"
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "False"


def test_without_langchain_the_import_says_what_to_install() -> None:
    done = run("import sys; sys.modules['langchain_core'] = None; import langchain_infinipot")
    assert done.returncode != 0
    assert 'pip install "infinipot-llm[langchain]"' in done.stderr
