"""Costs beforehand: nothing is downloaded for them, and they agree with what reading does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tiktoken
from conftest import byte_tokenizer, tiny_model

from infinipot_llm import Document, InfiniPot, PotConfig, facts
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

DOCUMENT = Document.from_text("The mill at Arden burned down in 1874. " * 40)


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("something was about to be downloaded")

    monkeypatch.setattr("tiktoken.load.read_file", refuse)


def test_hosted_tokens_are_estimated_without_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (str(tmp_path), ""):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder)
        assert facts.hosted_tokens([DOCUMENT]) == (len(DOCUMENT.text) / 4, False)


def test_a_damaged_encoding_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / facts._HOSTED_FILE).write_bytes(b"QQ== 0\n")
    assert facts.hosted_tokens([DOCUMENT])[1] is False


def test_hosted_tokens_are_counted_with_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the encoding: one token per byte."""
    content = b"any bytes"
    (tmp_path / facts._HOSTED_FILE).write_bytes(content)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(facts, "_HOSTED_SHA256", hashlib.sha256(content).hexdigest())
    ranks = {bytes([b]): b for b in range(256)}
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r"(?s:.)", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {facts.HOSTED_ENCODING: encoding}.__getitem__)
    evil = Document.from_text(DOCUMENT.text + "<|endoftext|>")
    assert facts.hosted_tokens([evil]) == (len(evil.text), True)


@pytest.mark.parametrize("budget", [500, 600, 900])
def test_cycles_foretold_are_the_cycles_that_happen(budget: int) -> None:
    config = PotConfig(budget=budget, max_new_tokens=64, question_tokens=32)
    with InfiniPot(Adapter(tiny_model("llama")), TextCodec(byte_tokenizer()), config) as llm:
        memory = llm.read(DOCUMENT)
        asked = len(llm.form.question("?")) + config.question_tokens
        assert (
            max(len(llm.form.question(q)) for q in llm.generic_questions([DOCUMENT])) <= asked + 64
        )  # fits the reserve
        model = llm.adapter.config
        cost = facts.reading_cost(model, config, 4, memory.stats.tokens_total, len(llm.form.prefix), asked)
    assert cost.cycles == memory.stats.cycles > 0
    assert cost.pot_bytes == memory.pot.cache.nbytes()
    assert cost.pot_flops < cost.full_flops * 2
