"""A press of kvpress as an arm of evaluation/runs.py: kvpress runs in a process and an environment of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import venv
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from infinipot_llm.answering.answer import FinishReason
from infinipot_llm.answering.decode import cut_at_stop
from infinipot_llm.answering.prompt import Prompt, PromptForm
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document
from infinipot_llm.errors import BudgetError, ModelError
from infinipot_llm.evaluation.arms import Arm, Outcome
from infinipot_llm.evaluation.rows import Row, Rows, digest

NEEDS = ("kvpress==0.5.5", "transformers<5.3")
WORKER = Path(__file__).with_name("kvpress_worker.py")
VERSIONS = ("kvpress", "transformers", "torch")
LOOKS = ("snapkv", "ada-snapkv", "tova", "finch")
"""Presses that keep what a known question looks at."""


def make_environment(folder: Path) -> None:
    """Make a virtual environment that kvpress works in.

    Raises:
        ModelError: There is something else in the folder, or pip fails (it says why itself).
    """
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} is not empty: name a folder that can be made.")
    venv.create(folder, with_pip=True)
    same_torch = f"torch=={version('torch').split('+')[0]}"
    constraints = folder / "constraints.txt"
    constraints.write_text(f"{same_torch}\n", encoding="utf-8")
    pip = [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    for wanted in ([same_torch], NEEDS):  # torch by itself first: from wherever pip is set up to take it
        if subprocess.run([*pip, *wanted], check=False).returncode:
            raise ModelError(f"pip could not install {' and '.join(wanted)} into {folder}: see above.")


def python_of(folder: Path) -> Path:
    """Return the python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


class Kvpress:
    """A process that runs kvpress and is asked over a pipe; ends with its `with` block."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it and wait until it has loaded the model.

        Raises:
            ModelError: It does not start, or cannot load the model.
        """
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, encoding="utf-8"
            )
        except OSError as error:
            self._errors.close()
            raise ModelError(f"{command[0]} does not start ({error.strerror}): {_REMEDY}") from error
        try:
            self.about = self._receive()
            if "error" in self.about:
                raise ModelError(f"kvpress cannot load the model: {self.about['error']}.")
        except BaseException:
            self.close()
            raise

    @classmethod
    def start(cls, python: str, folder: Path, device: str, dtype: str, threads: int) -> Kvpress:
        """Start the worker in its environment."""
        command = [python, "-I", str(WORKER), str(folder), "--device", device, "--dtype", dtype]
        return cls([*command, "--threads", str(threads)])

    def __enter__(self) -> Kvpress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process; it may be gone already."""
        process = self._process
        try:
            if process.stdin is not None:
                process.stdin.close()
        except OSError:
            pass  # what was still to be sent to a process that is gone
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._errors.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request, and return what was answered (see kvpress_worker.py).

        Raises:
            BudgetError: kvpress cannot do this; the next request may be fine.
            MemoryError: Memory ran out.
            ModelError: The process is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._gone() from error
        answer = self._receive()
        if answer.get("out_of_memory"):
            raise MemoryError(answer["error"])
        if "error" in answer:
            raise BudgetError(f"kvpress: {answer['error']}.")
        return answer

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            found = json.loads(self._process.stdout.readline())
        except json.JSONDecodeError as error:
            raise self._gone() from error
        return dict(found)

    def _gone(self) -> ModelError:
        """Say what the process said last."""
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        return ModelError(f"the kvpress process ended ({said[-1].rstrip('.') if said else 'silently'}): {_REMEDY}")


_REMEDY = "make its environment with `python benchmarks/peers.py env DIR`, and give --python DIR/bin/python."


def peer_arm(press: str, *, hidden: bool, keep: int | None = None) -> Arm:
    """Return a press as an arm.

    Args:
        press: Its name in kvpress_worker.py.
        hidden: Whether questions are hidden while reading.
        keep: Slots that it keeps; None: as many as our arms.
    """
    known = press in LOOKS and not hidden
    name = f"kvpress:{press}{'+question' * known}{'' if keep is None else f'@{keep}'}"
    return Arm(name, "full", None, wants_question=known)


def press_of(name: str) -> str:
    """Return what the press of an arm is called in kvpress_worker.py."""
    return re.split("[:+@]", name)[1]


class Peer:
    """Answers as `Examinee` does, by kvpress.

    Attributes:
        measured: Of the last answer, what an `Outcome` has no place for:
            kept: Slots that can be attended to, per layer, on average over heads. A known question's are among them.
            held: Slots that take memory, per layer.
    """

    def __init__(
        self, kvpress: Kvpress, form: PromptForm, config: PotConfig, keep: int | None = None, *, share: bool = False
    ) -> None:
        """Take a running kvpress.

        Args:
            kvpress: With the model.
            form: Of the model's tokenizer.
            config: What our arms are run with.
            keep: Slots to keep; None: as many as our arms hold when the question is put.
            share: Read a context once for all presses and questions: the same answers, but no press's time or memory.
        """
        self.kvpress = kvpress
        self.form = form
        self.config = config
        self.keep = keep
        self.share = share
        self.measured: dict[str, Any] = {}
        self._tokenized: tuple[str, list[int]] = ("", [])

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its answers beside our settings: the versions there, and the code that asks."""
        code = digest({path.name: path.read_text(encoding="utf-8") for path in (WORKER, Path(__file__))})
        return {"peer": {name: self.kvpress.about[name] for name in VERSIONS}, "peer_code": code}

    def forget(self) -> None:
        """Nothing: the worker lets go of what it read last, before it reads the next."""

    def answer(
        self,
        arm: Arm,
        context: str,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        hidden: bool = False,
    ) -> Outcome:
        """Have a context read under a press, and a prompt about it answered.

        Args:
            arm: What `peer_arm` returns.
            context: What to read.
            prompt: Tokens before and behind the context.
            max_new_tokens: Longest answer.
            stop: Texts that end the answer.
            hidden: The question is not known while reading.

        Raises:
            BudgetError: kvpress cannot do this.
        """
        known = arm.wants_question and not hidden
        self.measured = {}
        if context != self._tokenized[0]:
            document = Document.from_text(context, name="context")
            self._tokenized = context, [int(i) for i in self.form.codec.document([document]).ids]
        ids = self._tokenized[1]
        reserve = max(self.config.question_tokens, len(prompt.behind)) + max_new_tokens  # as `Examinee` has it
        keep = self.keep if self.keep is not None else self.config.budget - reserve
        if keep < 1:
            raise BudgetError(
                f"a budget of {self.config.budget} leaves nothing beside question and answer: they take {reserve}."
            )
        found = self.kvpress.ask(
            {
                "press": press_of(arm.name),
                "keep": keep,
                "known": known,
                "share": self.share,
                "before": list(prompt.before),
                "context": ids,
                "behind": [list(prompt.behind)],
                "max_new_tokens": max_new_tokens,
                "stop": list(stop),
            }
        )
        said = found["answers"][0]
        text, stopped = cut_at_stop(self.form.codec.decode(said["ids"]), stop)
        reason: FinishReason = "stop" if stopped or said["ended"] else "length"
        asked = len(prompt.behind) - 1 if known else 0  # tokens of the question, which are kept on top
        kept = found["kept"]
        self.measured = {name: found[name] for name in ("kept", "held")}
        return Outcome(
            text, reason, len(ids), round(sum(kept) / len(kept)) - asked, int(found["compressed"]),
            found["read_seconds"], said["seconds"], len(said["ids"]), found["memory_bytes"],
        )  # fmt: skip


class PeerRows(Rows):
    """Rows that also say what was measured of a press, and with which kvpress."""

    def __init__(self, path: Path | None, peer: Peer) -> None:
        super().__init__(path)
        self.peer = peer

    def __enter__(self) -> PeerRows:
        return self

    def add(self, row: Mapping[str, Any]) -> Row:
        about = {name: self.peer.kvpress.about[name] for name in VERSIONS}
        measured, self.peer.measured = self.peer.measured, {}  # of one answer, and not of the next
        return super().add({**row, **measured, "versions": about})
