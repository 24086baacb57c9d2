"""Tiny random models that can fail, a byte tokenizer, and the weights of a catalogue model where they were fetched."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from infinipot_llm.config import PotConfig
from infinipot_llm.engine import InfiniPot
from infinipot_llm.memory import waiting
from infinipot_llm.memory.store import STORE_VARIABLE
from infinipot_llm.models import catalogue
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

settings.register_profile("same", derandomize=True)  # the same examples in every run
settings.load_profile("same")
torch.set_num_threads(1)  # tiny tensors: a second thread only waits

DOCUMENTS = Path(__file__).resolve().parents[1] / "examples" / "documents"
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "vocab_size": 264,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
FAMILIES = ("llama", "qwen2", "qwen3")

_MIXED = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 20}
SLIDING: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "gemma3_text",
        {
            **_MIXED,
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
            },
        },
    ),
    "olmo3": ("olmo3", {**_MIXED, "pad_token_id": 0}),
    "cohere2": ("cohere2", {**_MIXED, "pad_token_id": 0}),  # its full layers have no positions
}
"""Models that mix sliding layers with others: name to model type and settings."""
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 300}),
    "phi3": ("phi3", {"pad_token_id": 0, "sliding_window": None}),
    "smollm3": ("smollm3", {"pad_token_id": 0, "no_rope_layers": [1, 0, 1]}),
    "glm": ("glm", {"pad_token_id": 0}),
    "glm4": ("glm4", {"pad_token_id": 0}),
    "olmo2": ("olmo2", {}),
    "granite": (
        "granite",
        {"logits_scaling": 3.0, "attention_multiplier": 0.1, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    ),
    **SLIDING,
}
"""Further families, for the essential tests alone."""


def tiny_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model whose outputs depend on positions strongly enough for a wrong rotation to show."""
    torch.manual_seed(seed)
    kind, own = OTHERS.get(family, (family, {}))
    config = AutoConfig.for_model(kind, **{**SIZES, **own, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.5)
    model.generation_config.eos_token_id = 256  # <|im_end|> of byte_tokenizer
    model.generation_config.pad_token_id = 257
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, two chat markers, and a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.add_tokens(["<tool_call>"])  # an added token that is not special, as Qwen has
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="session")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of words for tokens, so that a whole report is read in seconds."""
    folder = tmp_path_factory.mktemp("model")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    core.train([str(DOCUMENTS / "hollin_valley.md")], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    model = tiny_model("llama", vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=8192)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the user's memories; subprocesses inherit the variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORE_VARIABLE, str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(autouse=True)
def own_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An answer that was cancelled ends before the next test begins."""
    executor = ThreadPoolExecutor(64)
    monkeypatch.setattr(waiting, "_ANSWERING", executor)
    yield
    executor.shutdown(wait=True)


@pytest.fixture(scope="session")
def codec() -> TextCodec:
    return TextCodec(byte_tokenizer())


@pytest.fixture(params=FAMILIES)
def adapter(request: pytest.FixtureRequest) -> Iterator[Adapter]:
    made = Adapter(tiny_model(request.param))
    yield made
    made.close()


@pytest.fixture
def tiny_llm(codec: TextCodec) -> Iterator[InfiniPot]:
    config = PotConfig(budget=512, max_new_tokens=16, question_tokens=32, chunk=64)
    with InfiniPot(Adapter(tiny_model("llama")), codec, config) as llm:
        yield llm


def fetched_model(name: str) -> str:
    """Return the name when its weights are on this machine; skip the test otherwise."""
    if not catalogue.is_fetched(name):
        pytest.skip(f"the weights of {name} are not here: run `infinipot models get {name}`")
    return name


@pytest.fixture
def closed_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lend synchronous tests a loop: LlamaIndex makes one where there is none, and never closes it."""
    if inspect.iscoroutinefunction(request.function):
        yield
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
