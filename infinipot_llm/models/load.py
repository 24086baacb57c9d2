"""A name, a folder or a hub id to a model that reads through slots, on a sensible device in a sensible dtype.

No network unless asked; safetensors only (the catalogue's GGUF files were converted when they were fetched); no code
that comes with a model is ever run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from infinipot_llm.errors import ModelError, ModelNotFetchedError
from infinipot_llm.models import catalogue, packed
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.convert import check_files, verify_tokenizer
from infinipot_llm.models.device import choose_device, choose_dtype
from infinipot_llm.models.fetch import fetch
from infinipot_llm.models.text import TextCodec

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""What is taken from a hub repository: configuration, tokenizer and safetensors; never code, never pickles."""

HUB_COPIES = ("consolidated*", "original/*")
"""Second copies of the weights, in the layout of their authors, which some repositories have beside the first."""


def load_model(
    name: str, *, device: str = "auto", dtype: str = "auto", download: bool = False
) -> tuple[Adapter, TextCodec]:
    """Load a model and switch it to reading through slots.

    Args:
        name: A name of the catalogue, a folder with config.json and safetensors, or a hub id "owner/name".
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto", "float32", "bfloat16", "float16".
        download: Fetch what is missing; without it nothing is fetched and a sentence names the command that does.

    Returns:
        The adapter and the tokenizer.

    Raises:
        ModelError: The model is unknown, not fetched, damaged, of an unsupported architecture, or fails its self-check.
    """
    folder = find_folder(name, download)
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=kind,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            for problem in ("missing_keys", "mismatched_keys"):  # the library would fill these in at random
                if wrong := sorted(map(str, loading.get(problem) or ())):
                    raise ModelError(
                        f"the weights in {name!r} lack {wrong[0]}, or have it in another shape: fetch them again."
                    )
            adapter = Adapter(model.to(where))
            if where.type == "cpu" and packed.pays(kind):
                adapter.close()  # the check opens it, and so sees the laid-out weights beside the plain ones
                adapter.pack()
            adapter.self_check()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        more = f" (if a download was interrupted: run `infinipot models get {name}` again)" if _is_hub_id(name) else ""
        raise ModelError(f"the model in {name!r} cannot be loaded: {_first_line(error)}{more}") from error
    if name in catalogue.CATALOGUE:
        verify_tokenizer(tokenizer, folder)
    return adapter, TextCodec(tokenizer)


_loaded: dict[tuple[Path, torch.device, torch.dtype], tuple[Adapter, TextCodec]] = {}
_loading = threading.Lock()


def load_shared(
    name: str, *, device: str = "auto", dtype: str = "auto", download: bool = False
) -> tuple[Adapter, TextCodec]:
    """Load a model as `load_model` does, once per process: whoever asks again is given the same one.

    It stays loaded until the process ends, and must not be closed.
    """
    where = choose_device(device)
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())  # "cuda" and "cuda:0" are one
    with _loading:
        key = (find_folder(name, download).resolve(), where, choose_dtype(dtype, where))
        if key not in _loaded:
            _loaded[key] = load_model(name, device=device, dtype=dtype)
        return _loaded[key]


def load_facts(name: str) -> tuple[Any, Any]:
    """Load a model's configuration and tokenizer alone, from this machine.

    Raises:
        ModelError: The model is unknown, not fetched, or cannot be read.
    """
    folder = find_folder(name, download=False)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the model in {name!r} cannot be loaded: {_first_line(error)}") from error
    return config.get_text_config(decoder=True), tokenizer


def find_folder(name: str, download: bool) -> Path:
    """Find the folder that holds a model's files, fetching them only when asked.

    Args:
        name: A name of the catalogue, a folder, or a hub id.
        download: Whether to fetch what is missing.

    Raises:
        ModelError: The model is unknown, or not on this machine.
    """
    if name in catalogue.CATALOGUE:
        if not catalogue.is_fetched(name):
            if not download:
                raise ModelNotFetchedError(
                    f"the model {name!r} is not on this machine yet: run `infinipot models get {name}`."
                )
            fetch(name)
        folder = catalogue.model_dir(name)
        check_files(folder, full=False)
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"the folder {name!r} holds no config.json: give the folder of a saved model.")
        return path
    if name.lower().endswith(".gguf"):
        raise ModelError(f"{name!r} is a GGUF file: give the folder or hub id of the model that it was made from.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists():
        raise ModelError(f"there is no folder {name!r}: give the folder of a saved model.")
    if name.count("/") == 1:
        return _from_hub(name, download)
    return catalogue.model_dir(catalogue.lookup(name).name)  # raises, listing the names that are known


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _from_hub(name: str, download: bool) -> Path:
    """Find a hub repository in the local hub cache, or download it when asked."""
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_COPIES), local_files_only=not download
            )
        )
    except LocalEntryNotFoundError as error:
        if download:
            raise ModelError(
                f"{name!r} cannot be fetched: the model hub is out of reach, or switched off here."
            ) from error
        raise ModelNotFetchedError(
            f"the model {name!r} is not on this machine yet: run `infinipot models get {name}`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"there is no model {name!r} on the hub, or it needs a login.") from error
    except Exception as error:  # a proxy, a gate, a broken connection: whatever library it comes from
        raise ModelError(f"{name!r} cannot be fetched from the hub: {_first_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars and chatter off the terminal while a model is loaded; put all back after."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _first_line(error: Any) -> str:
    """Return the first line of an error of another library, as the end of a sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(".") if lines else type(error).__name__) + "."
