"""What reading.py and gpu_reading.py measure with: what is read, work that takes turns, clocks, rows of results.

Shapes: `L` layers with slots, `K` KV heads, `C` new tokens, `D` head dim, `E` hidden size, `B` batch.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from infinipot_llm import Document, InfiniPot, PotConfig
from infinipot_llm.answering.decode import Sampling, decode, end_ids
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec, TokenizedText
from infinipot_llm.pot import catalyst, distill, reader
from infinipot_llm.pot.plan import Plan, plan
from infinipot_llm.pot.pot import Pot
from infinipot_llm.pot.reader import Reader, ReadStats

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model, and what it is made to read.

    Attributes:
        adapter: The model.
        codec: Its tokenizer.
        config: How it reads.
        prefix: Tokens before the text.
        catalysts: Token ids of the prompts that score the slots.
        reserve: Slots left free behind the text.
        source: [n] int32, tokens that a text of any length repeats.
    """

    adapter: Adapter
    codec: TextCodec
    config: PotConfig
    prefix: tuple[int, ...]
    catalysts: tuple[tuple[int, ...], ...]
    reserve: int
    source: NDArray[np.int32]

    @classmethod
    def of(cls, llm: InfiniPot, document: Document) -> Subject:
        """Read as `llm.read(document)` does, but for the shelf."""
        form, config = llm.form, llm.config
        catalysts = tuple(tuple(form.question(q)) for q in llm.generic_questions([document]))
        reserve = len(form.question("?")) + config.question_tokens + min(config.max_new_tokens, 256)
        return cls(
            llm.adapter, form.codec, config, form.prefix, catalysts, reserve, form.codec.document([document]).ids
        )

    def text(self, tokens: int) -> TokenizedText:
        """Return a text of so many tokens, one to a character."""
        places = np.arange(tokens, dtype=np.int32)
        document = Document.from_text("x" * tokens)
        return TokenizedText(
            (document,), np.resize(self.source, tokens), places, places + 1, np.asarray([0, tokens], np.int64)
        )

    def plan(self) -> Plan:
        """Return how the budget is divided for a text that does not fit."""
        longest = max(map(len, self.catalysts)) if Reader(self.adapter, self.config).policy.needs.catalyst else 0
        return plan(self.config, self.adapter.window, 2**40, len(self.prefix), longest, self.reserve)

    def states(self, tokens: int, batch: int = 1) -> list[tuple[Tensor, Tensor]]:
        """Return random keys and values [B, K, tokens, D] of every layer of the model: they cost what others cost."""
        K, D = int(self.adapter.config.num_key_value_heads), int(self.adapter.attentions[0].head_dim)
        kind: dict[str, Any] = {"dtype": self.adapter.dtype, "device": self.adapter.device}
        shape = (batch, K, tokens, D)
        return [(torch.randn(shape, **kind), torch.randn(shape, **kind)) for _ in self.adapter.windows]

    def filled(self, tokens: int) -> Pot:
        """Return a pot that holds so many slots."""
        pot, states = Pot(self.adapter, self.config.budget), self.states(tokens)
        order = [i for i, w in enumerate(self.adapter.windows) if w is None]
        order += [i for i, w in enumerate(self.adapter.windows) if w is not None]  # `place` wants these behind
        keys, values = (torch.stack([states[i][which][0] for i in order]) for which in (0, 1))
        pot.place(keys, values, torch.arange(tokens))
        return pot

    def plain_cache(self, states: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
        """Return transformers' own cache, holding these."""
        cache = DynamicCache(config=self.adapter.config)
        for layer, (keys, values) in enumerate(states):
            cache.update(keys, values, layer)
        return cache


class Rows:
    """JSON lines of what was measured; what is there already is not measured again."""

    def __init__(self, out: Path | None, common: Row) -> None:
        self.out = out
        self.common = common
        self.known = load_rows(out) if out and out.exists() else []

    def measure(self, key: Row, work: Callable[..., Row], *args: Any) -> Row:
        """Return the row of this key, measured now by `work(*args)` unless it is there."""
        whole = {**key, **self.common}
        for row in self.known:
            if all(row.get(name) == value for name, value in whole.items()):
                return row
        row = json.loads(json.dumps({**whole, **work(*args)}))
        self.known.append(row)
        print(json.dumps({name: value for name, value in row.items() if name not in self.common}), flush=True)
        if self.out:
            with self.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
        return row


def load_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def machine() -> Row:
    """Name what the times are of."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else "unknown",
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def numbers(text: str) -> list[int]:
    """Return the numbers of an option that takes several."""
    return [int(number) for number in text.split(",")]


def beside(first: Sequence[float], second: Sequence[float]) -> Row:
    """Compare times that were taken in turns.

    Returns:
        The count of pairs, both medians, their ratio (first to second), and the lowest and highest ratio of one turn.
    """
    each = [a / b for a, b in zip(first, second, strict=True)]
    return {
        "count": len(each),
        "first": round(median(first), 4),
        "second": round(median(second), 4),
        "ratio": round(median(first) / median(second), 4),
        "lowest": round(min(each), 4),
        "highest": round(max(each), 4),
    }


class _Closed(Exception):  # noqa: N818 - no error: the end of work that is not wanted any more
    """Raised inside work that is given up."""


class Work:
    """Work in a thread of its own that goes on for one piece at each `step`, so that several take turns."""

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        """Begin, and wait for the first step.

        Args:
            work: Given a function that it calls between two pieces.
        """
        self.over = False
        self._error: BaseException | None = None
        self._closed = False
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        threads = torch.get_num_threads()

        def run() -> None:
            try:
                self._wait()
                torch.set_num_threads(threads)
                work(self._pause)
            except _Closed:
                pass
            except BaseException as error:
                self._error = error
            self.over = True
            self._done.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def step(self) -> float:
        """Do the next piece; return its seconds."""
        started = time.perf_counter()
        self._go.release()
        self._done.acquire()
        seconds = time.perf_counter() - started
        if self._error is not None:
            raise self._error
        return seconds

    def close(self) -> None:
        """Give up what is left."""
        if not self.over:
            self._closed = True
            self._go.release()
        self._thread.join()

    def _pause(self) -> None:
        self._done.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._closed:
            raise _Closed


class Reading(Work):
    """A reading in pieces: the first fills the pot, each further one is a cycle, until the pot is full again.

    Attributes:
        stats: As of the last piece.
    """

    def __init__(self, subject: Subject, tokens: int) -> None:
        self.stats = ReadStats(tokens)
        room = subject.plan().room

        def work(pause: Callable[[], None]) -> None:
            def told(stats: ReadStats) -> None:
                self.stats = stats
                if stats.slots >= room and stats.tokens_read < tokens:
                    pause()

            Reader(subject.adapter, subject.config).read(
                subject.text(tokens), subject.prefix, subject.catalysts, subject.reserve, progress=told
            )

        super().__init__(work)


def plain_reading(subject: Subject, tokens: int, pieces: Sequence[int]) -> Work:
    """A reading with the full cache of transformers, to be stepped while the adapter is closed.

    Args:
        subject: Model, prefix and chunk.
        tokens: Of the text.
        pieces: Where pieces end, in tokens of the text.
    """
    ends = {*pieces, tokens}

    def work(pause: Callable[[], None]) -> None:
        cache = DynamicCache(config=subject.adapter.config)
        ids = torch.from_numpy(subject.text(tokens).ids.astype("int64"))
        if subject.prefix:
            plain_forward(subject.adapter, torch.tensor(subject.prefix), cache)
        for start, stop in chunks(0, tokens, subject.config.chunk, sorted(ends)):
            plain_forward(subject.adapter, ids[start:stop], cache)
            if stop in ends and stop < tokens:
                pause()

    return Work(work)


def chunks(start: int, stop: int, size: int, borders: Sequence[int] = ()) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces of at most `size` that end at the borders inside it."""
    for border in [*(b for b in borders if start < b < stop), stop]:
        while start < border:
            yield start, min(start + size, border)
            start = min(start + size, border)


def plain_forward(adapter: Adapter, ids: Tensor, cache: DynamicCache) -> Tensor:
    """Run [C] or [B, C] tokens through the plain body, the adapter being closed; returns [C, E] or [B, C, E]."""
    rows = ids[None] if ids.dim() == 1 else ids
    with torch.no_grad():
        out = adapter.backbone(input_ids=rows.to(adapter.device), past_key_values=cache, use_cache=True)
    hidden: Tensor = out.last_hidden_state
    return hidden[0] if ids.dim() == 1 else hidden


@contextmanager
def plain(adapter: Adapter) -> Iterator[None]:
    """The model as transformers has it, with its default attention."""
    adapter.close()
    try:
        yield
    finally:
        adapter.open()


def seconds_of(adapter: Adapter, work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Return how long a call takes, on a GPU until that is done too, and what it returns."""
    settle(adapter.device)
    started = time.perf_counter()
    found = work(*args)
    settle(adapter.device)
    return time.perf_counter() - started, found


def settle(device: torch.device) -> None:
    """Wait for a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stamps(LogitsProcessor):
    """Notes when each token's scores are there, and lets none end the answer."""

    def __init__(self, ends: Sequence[int] = ()) -> None:
        self.ends = list(ends)
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        settle(scores.device)
        self.times.append(time.perf_counter())
        if self.ends:
            scores = scores.clone()
            scores[:, self.ends] = float("-inf")
        return scores

    @property
    def between(self) -> list[float]:
        """Seconds from each token to the next; the first one, which the question's forward is part of, has none."""
        return np.diff(self.times).tolist()


class Clock:
    """Where the time of a reading goes: seconds by name, those of what is called inside not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[list[Any]] = []  # [name, seconds of what it called]

    @contextmanager
    def watching(self, adapter: Adapter, policy: Any) -> Iterator[None]:
        """Note what the functions of the reading take while this lasts."""
        watched = [
            (type(adapter), "forward", "forward"),
            (reader, "surprise", "head and novelty"),
            (distill, "importance", "catalyst: scores"),
            (catalyst, "attention_received", "catalyst: scores"),
            (type(policy), "score", "choice"),
            (distill, "select", "choice"),
            (Pot, "keep", "gather and re-rotation"),
        ]
        with ExitStack() as stack:
            for owner, function, name in watched:
                stack.enter_context(patch.object(owner, function, self._timed(name, getattr(owner, function))))
            yield

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            inside = name
            if name == "forward" and any(frame[0] == "catalyst: scores" for frame in self._inside):
                inside = "catalyst: forward"
            self._inside.append([inside, 0.0])
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.perf_counter() - started
                self.seconds[inside] += taken - self._inside.pop()[1]
                if self._inside:
                    self._inside[-1][1] += taken

        return timed


def decode_ours(subject: Subject, pot: Pot, question: Sequence[int], new: int) -> list[float]:
    """Return the seconds of each token but the first, answering over a pot."""
    stamps = Stamps(end_ids(subject.adapter, subject.codec))
    sampling = Sampling(max_new_tokens=new)
    decode(subject.adapter, subject.codec, pot, question, sampling, processors=[stamps])
    return stamps.between
