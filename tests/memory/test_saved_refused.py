"""Saved memories that are refused: what differs is named, damage is noticed, a save that fails leaves nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT, byte_tokenizer, tiny_model
from saved_samples import CONFIG, QUESTIONS, Saved, forged, parts_of, refusal
from saved_samples import adapter as adapter
from saved_samples import saved as saved

from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import StoreError
from infinipot_llm.memory import file as file_module
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec


def another(**changes: Any) -> InfiniPot:
    model = changes.get("model") or tiny_model("llama")
    if "nudge" in changes:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    if "dtype" in changes:
        model = model.to(changes["dtype"])
    tokenizer = byte_tokenizer()
    if "template" in changes:
        tokenizer.chat_template = changes["template"]
    if "token" in changes:
        tokenizer.add_tokens([changes["token"]])
    return InfiniPot(Adapter(model), TextCodec(tokenizer), CONFIG)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ()),
        ({"nudge": True}, ("model",)),
        ({"dtype": torch.bfloat16}, ("model",)),
        ({"model": tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})}, ("model",)),
        ({"token": "<another>"}, ("tokenizer",)),
        ({"template": CHAT.replace("assistant", "helper")}, ("prompt",)),
        ({"template": None}, ("prompt",)),
        (
            {"nudge": True, "token": "<a>", "template": CHAT.replace("user", "x") + " "},
            ("model", "tokenizer", "prompt"),
        ),
    ],
)
def test_what_differs_is_named(saved: Saved, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    names = {"model": "weights in another dtype", "tokenizer": "another tokenizer", "prompt": "another chat template"}
    with another(**changes) as llm:
        if not parts:
            assert llm.load(saved["int8"][2]).ask(QUESTIONS[0]).text == saved["int8"][1].ask(QUESTIONS[0]).text
            return
        told = refusal(llm, saved["int8"][2])
        assert {part for part, name in names.items() if name in told} == set(parts)
        assert "(tiny" in told
        assert ("--dtype float32" in told) == ("dtype" in changes)


def test_another_format_version_is_named(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about, tensors = parts_of(saved["int8"][2])
    monkeypatch.setattr(file_module, "FORMAT", 1)
    forged(tmp_path / "a", about, tensors)
    monkeypatch.undo()
    assert "format 1" in refusal(saved["int8"][0], tmp_path / "a")


@pytest.mark.parametrize("name", ["x" * 5000, "two\nlines", "\x1b[2J", ["a"], {"a": 1}, 5])
def test_a_strangers_name_of_a_model_stays_one_line(saved: Saved, tmp_path: Path, name: object) -> None:
    about, tensors = parts_of(saved["int8"][2])
    about["model"] = name
    forged(tmp_path / "a", about, tensors)
    with another(nudge=True) as llm:
        told = refusal(llm, tmp_path / "a")
    assert told.isprintable()


@pytest.mark.parametrize("kind", ["int8", "bounded", "off"])
def test_damaged_bytes_are_refused(saved: Saved, tmp_path: Path, kind: str) -> None:
    llm, _, path = saved[kind]
    data, rng = bytearray(path.read_bytes()), random.Random(kind)
    for _ in range(70):
        place, flip = rng.randrange(len(data)), rng.randrange(1, 256)
        data[place] ^= flip
        (tmp_path / "a").write_bytes(data)
        refusal(llm, tmp_path / "a")
        data[place] ^= flip


def test_a_save_that_fails_leaves_nothing(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    for kind in ("int8", "extended", "off"):
        for target in (
            tmp_path / "missing" / "a",
            tmp_path / "text" / "a",
            tmp_path,
            tmp_path / ("a" * 300),
            Path("/"),
        ):
            with pytest.raises(StoreError, match="give"):
                saved[kind][1].save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["text"]
