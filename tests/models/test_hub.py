"""Models of the hub: what is taken of a repository, and that whatever goes wrong there is a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from infinipot_llm.errors import ModelError
from infinipot_llm.models import load


def test_one_copy_of_the_weights_is_taken_and_no_code() -> None:
    wanted = [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "chat_template.jinja",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
    ]  # fmt: skip
    others = [
        "consolidated.safetensors", "consolidated.00.pth", "original/consolidated.00.safetensors", "model.py",
        "pytorch_model.bin", "original/params.json",
    ]  # fmt: skip
    patterns: dict[str, Any] = {"allow_patterns": list(load.HUB_FILES), "ignore_patterns": list(load.HUB_COPIES)}
    assert list(filter_repo_objects([*wanted, *others], **patterns)) == wanted


class OddError(Exception):
    """What no library that we know of raises."""


def test_whatever_the_hub_raises_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses was a traceback."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OddError("403 Forbidden\nby the proxy")

    monkeypatch.setattr(load, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"'own/tiny' cannot be fetched from the hub: 403 Forbidden\.$"):
        load.find_folder("own/tiny", download=True)


def test_an_interrupted_download_is_named_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(load, "snapshot_download", lambda *_, **__: tmp_path)
    with pytest.raises(ModelError, match=r"cannot be loaded: .*\(if a download was interrupted: run `infinipot models"):
        load.load_model("own/tiny")
    with pytest.raises(ModelError) as caught:
        load.load_model(str(tmp_path))
    assert "models get" not in str(caught.value)
