"""Turns a GGUF file into a plain folder of float32 weights, and proves what it wrote.

Reading a GGUF takes most of a minute, because every weight is unpacked from about four bits. It is done once: the
folder holds the unpacked values unchanged, which load in moments through a memory map. Its manifest says what belongs
in it, so that a damaged file, or a tokenizer that another release of transformers reads differently, is found out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infinipot_llm.errors import ModelError
from infinipot_llm.models.catalogue import MANIFEST_FORMAT, MANIFEST_NAME, read_manifest, remedy, size_of
from infinipot_llm.models.gguf_tokenizer import gguf_tokenizer

_BLOCK = 1 << 22
_REPORT = "install another release of transformers (5.3 or newer, below 6) and try again"

# Marks at which a chat model stops: its own end-of-sequence token and those of these that it has.
_END_MARKS = ("<|im_end|>", "<|endoftext|>")

# Each of these went wrong in some tokenizer once. All are in composed form (NFC), as tokenizers that normalise expect.
SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "Section 4.2 cost 68211 and 3.14, not 1,000,000.50 (2024-07-31)!",
    "élan naïve Straße œuvre Łódź señor",
    "漢字かな交じり文と中文文本。",
    "한국어 문장입니다.",
    "هذه جملة عربية.",
    "Привет, мир; γειά σου κόσμε",
    "🙂🚀👩‍👩‍👧 ½ ≤ ∑ €",
    "one\ntwo\r\n\n\tthree  four    five ",
    " leading space, ,odd . spacing ?",
    'def f(x: int) -> str:\n    return f"{x!r}"  # it\'s 100% fine\n',
    "don't we'll I'm",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
)


def convert_gguf(gguf: Path, target: Path) -> None:
    """Write the model of a GGUF file as a folder that `from_pretrained` loads, checked and with a manifest.

    The folder is built beside the target and takes its name when it is finished; an interruption leaves no target.

    Args:
        gguf: The GGUF file, of an architecture that transformers can read.
        target: The folder to write, about 4 bytes per weight; its last part is taken as the model's name. It must
            not exist yet.

    Raises:
        ModelError: The file cannot be read as a model, the folder exists or cannot be written, or what was written
            does not read back the same.
    """
    from safetensors import SafetensorError

    if target.exists():
        raise ModelError(f"{target} exists already: delete it first, or name another folder")
    building = target.parent / f".{target.name}.building"
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        with _quiet():
            tokenizer, model = _read_gguf(gguf)
            samples = _sample_ids(tokenizer, gguf)
            weights = _write(model, tokenizer, building)
            _verify_weights(weights, building, gguf)
            from transformers import AutoTokenizer

            reread = AutoTokenizer.from_pretrained(building, local_files_only=True)
        _compare(reread, samples, f"the tokenizer written from {gguf} does not read back the same: {_REPORT}")
        _write_manifest(building, target.name, _sha256(gguf), samples)
        building.rename(target)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{target} cannot be written ({error}): free some space, or name another folder") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def verify_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Check that a loaded tokenizer reads and writes text as it did when its model was converted.

    A tokenizer saved by one release of transformers and loaded by another can lose its byte-level decoder, and answers
    then come out as gibberish without any error. This takes a few milliseconds.

    Args:
        tokenizer: The tokenizer, as loaded from the folder.
        folder: A folder that `convert_gguf` wrote.

    Raises:
        ModelError: The tokenizer gives other ids or another text for a stored sample, or there is no manifest.
    """
    import transformers

    manifest = read_manifest(folder)
    problem = (
        f"the tokenizer in {folder}, written by transformers {manifest['transformers']}, reads text differently under "
        f"transformers {transformers.__version__}: {remedy(folder)}"
    )
    _compare(tokenizer, manifest["tokenizer_samples"], problem)


def check_files(folder: Path, full: bool) -> None:
    """Check the files of a converted model against its manifest.

    Args:
        folder: A folder that `convert_gguf` wrote.
        full: Also compare each file's SHA-256, which reads the whole folder; otherwise only sizes are compared.

    Raises:
        ModelError: A file is missing or differs, or there is no manifest.
    """
    for name, facts in read_manifest(folder)["files"].items():
        path = folder / name
        if size_of(path) != facts["size"] or (full and _sha256(path) != facts["sha256"]):
            raise ModelError(f"{path} is damaged or missing: {remedy(folder)}")


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    """Load tokenizer and float32 model of a GGUF file, and see that the file filled every weight."""
    import torch
    from transformers import AutoModelForCausalLM

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    try:
        tokenizer = gguf_tokenizer(gguf)
        model, info = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
    except ModelError:
        raise
    except Exception as error:  # a damaged file surfaces as almost any type; the sentence keeps its words
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{gguf} cannot be read as a language model ({reason}): fetch it again, or {_REPORT}"
        ) from error
    # transformers fills a weight that the file lacks with random numbers and only logs it.
    if missing := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
        raise ModelError(f"{gguf} lacks {len(missing)} weights of its model, such as {missing[0]}: {_REPORT}")
    return tokenizer, model


def _sample_ids(tokenizer: Any, gguf: Path) -> list[dict[str, Any]]:
    """Return the fixed samples with their ids, having seen that each comes back as the same text."""
    samples = [{"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in SAMPLES]
    _compare(tokenizer, samples, f"the tokenizer read from {gguf} does not give text back unchanged: {_REPORT}")
    return samples


def _compare(tokenizer: Any, samples: list[dict[str, Any]], problem: str) -> None:
    for sample in samples:
        ids = list(tokenizer(sample["text"], add_special_tokens=False)["input_ids"])
        text = tokenizer.decode(sample["ids"], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if ids != sample["ids"] or text != sample["text"]:
            raise ModelError(problem)


def _write(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Save model and tokenizer without a trace of the GGUF; return the weights that were to be saved."""
    import torch
    from transformers import GenerationConfig

    described = model.config.to_dict()
    # transformers refuses to save a model that it holds for quantised, although these values are unpacked.
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        described.pop(key, None)
    known = tokenizer.get_vocab()
    ends = [tokenizer.eos_token_id, *(known[mark] for mark in _END_MARKS if mark in known)]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    if not ends:
        raise ModelError("the model's tokenizer names no token at which an answer ends: choose a chat model")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    marks = {"eos_token_id": ends, "pad_token_id": pad, "bos_token_id": tokenizer.bos_token_id}
    described |= {**marks, "architectures": [type(model).__name__], "dtype": "float32"}
    with torch.device("meta"):
        plain = type(model)(type(model.config).from_dict(described))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig(do_sample=False, **marks)
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)  # they are made private whatever the umask says
    return model.state_dict()


def _verify_weights(weights: dict[str, Any], folder: Path, gguf: Path) -> None:
    """Read every weight back from disk and compare it bit by bit; tied weights are stored once."""
    import torch
    from safetensors import safe_open

    pending = dict(weights)
    stored: set[int] = set()
    same = True
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (the handle is no dict)
                expected, found = pending.pop(key, None), file.get_tensor(key)
                # As integers, because NaN differs from itself and -0.0 equals 0.0.
                same = same and expected is not None and found.dtype == expected.dtype == torch.float32
                same = same and torch.equal(found.view(torch.int32), expected.view(torch.int32))
                if expected is not None:
                    stored.add(expected.data_ptr())
    unwritten = [key for key, weight in pending.items() if weight.data_ptr() not in stored]
    if not same or unwritten or not stored:
        raise ModelError(f"the weights written from {gguf} do not read back the same: check the disk and fetch again")


def _write_manifest(folder: Path, name: str, source_sha256: str, samples: list[dict[str, Any]]) -> None:
    """Describe every file of the folder; the manifest appears whole or not at all."""
    import transformers

    files = {path.name: {"size": size_of(path), "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    manifest = {
        "format": MANIFEST_FORMAT,
        "name": name,
        "source_sha256": source_sha256,
        "transformers": transformers.__version__,
        "files": files,
        "tokenizer_samples": samples,
    }
    partial = folder / f".{MANIFEST_NAME}.partial"
    partial.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST_NAME)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and log lines off the terminal, and put its settings back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The bar of the GGUF reader obeys no setting; it writes to whatever sys.stderr is at the time.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
