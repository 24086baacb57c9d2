"""Names lead to entries and folders, and only a whole folder counts as fetched."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infinipot_llm.errors import ModelError
from infinipot_llm.models import catalogue
from infinipot_llm.models.catalogue import CATALOGUE, DEFAULT_MODEL, cache_dir, is_fetched, lookup, model_dir


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINIPOT_CACHE", str(tmp_path))
    return tmp_path


def a_manifest(**changes: object) -> dict[str, object]:
    return {
        "format": catalogue.MANIFEST_FORMAT,
        "name": DEFAULT_MODEL,
        "source_sha256": CATALOGUE[DEFAULT_MODEL].sha256,
        "transformers": "5.23.0",
        "files": {"config.json": {"size": 2, "sha256": "-"}},
        "tokenizer_samples": [{"text": "a", "ids": [1]}],
        **changes,
    }


def a_model(folder: Path, manifest: dict[str, object] | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    (folder / "manifest.json").write_text(text)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_entry_is_well_formed(name: str) -> None:
    entry = lookup(name)
    assert entry.name == name
    assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert re.fullmatch(r"main|[0-9a-f]{40}", entry.revision)
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", wheel) for wheel in entry.wheels)
    assert 0 < entry.size_bytes < 4 * entry.parameters
    assert entry.window_tokens >= 8192


def test_the_default_is_in_the_catalogue() -> None:
    assert DEFAULT_MODEL in CATALOGUE


def test_entries_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        lookup(DEFAULT_MODEL).sha256 = "0" * 64  # type: ignore[misc]


@pytest.mark.parametrize("name", ["gpt-9", "", "../elsewhere"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ModelError, match=r"qwen2\.5-coder-0\.5b, smollm2-135m"):
        model_dir(name)


def test_the_cache_follows_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_dir(DEFAULT_MODEL) == cache / "models" / DEFAULT_MODEL
    monkeypatch.setenv("INFINIPOT_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.setenv("INFINIPOT_CACHE", "")
    assert cache_dir().name.lower() == "infinipot" or "infinipot" in cache_dir().parts


def test_a_whole_folder_is_fetched(cache: Path) -> None:
    assert not is_fetched(DEFAULT_MODEL)
    a_model(model_dir(DEFAULT_MODEL), a_manifest())
    assert is_fetched(DEFAULT_MODEL)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        '{"format": 1, "fil',
        "[]",
        "{}",
        a_manifest(format=catalogue.MANIFEST_FORMAT + 1),
        a_manifest(files={}),
        a_manifest(files={"config.json": {"size": 3, "sha256": "-"}}),
        a_manifest(files={"missing.json": {"size": 2, "sha256": "-"}}),
        a_manifest(tokenizer_samples=[]),
        a_manifest(source_sha256="0" * 64),
    ],
)
def test_anything_less_is_not(cache: Path, manifest: dict[str, object] | str) -> None:
    a_model(model_dir(DEFAULT_MODEL), manifest)
    assert not is_fetched(DEFAULT_MODEL)


def test_a_missing_manifest_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="infinipot models get some-model"):
        catalogue.read_manifest(tmp_path / "some-model")


def test_importing_it_is_light() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'numpy'}"
    code = f"import sys, infinipot_llm.models.catalogue; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
