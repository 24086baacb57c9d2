"""The presses of kvpress behind a pipe: a line of JSON in, a line of JSON out. `peers.py` starts it.

    PYTHON benchmarks/kvpress_worker.py MODEL_FOLDER [--device cpu] [--dtype float32] [--threads 2]

It runs in an environment of its own (`peers.py env DIR` makes one): kvpress 0.5.5 needs an older transformers than this
project. Nothing of this project is imported, nothing is fetched. The first line out says what is there; then one line
follows each line in:

    in   {"press": NAME, "keep": slots, "known": bool, "share": bool, "before": [ids], "context": [ids],
          "behind": [[ids], ...], "max_new_tokens": n, "stop": [texts]}
    out  {"answers": [{"ids": [...], "ended": bool, "seconds": s}, ...], "read_tokens": n, "compressed": bool,
          "kept": [slots per layer], "held": [slots per layer], "read_seconds": s, "memory_bytes": b}
          or {"error": "why not", "out_of_memory": whether that is why}

Prompts come as token ids, so that they are those of the other arms to the token. How they are read:

* The question is not known: `before + context` are read in one forward pass under the press, every question is then fed
  behind what is left, and cut off again with its answer, as kvpress's own pipeline does it. What was read last is kept
  for the next request with the same press, context and `keep`, which then takes 0 seconds to read.
* The question is known: everything but the prompt's last token is read under the press, so that SnapKV's window (the
  last 64 tokens) ends with the question, TOVA looks from its last token but one, and Finch's window (its delimiter
  stands behind the context) is the question. The question's tokens come on top of `keep`. The last token is then fed
  for the first token of the answer.

* Shared: a press looks at what it has read only after each layer's attention, and changes nothing of what the next
  layer is given. So `before + context` are read once for all presses and questions; keys, values and each layer's
  input are kept, a known question is read behind them, and the press is called on the whole as its hook calls it. What
  is left is what one pass leaves, up to rounding, but it takes no press's time or memory: these are not told (0 and
  None). KVzip reads in a way of its own, and is not shared.

The first tokens (the system prompt) are no safer from a press than they are in kvpress. Positions go on behind the
whole prompt, or behind what is left where the press re-rotates its keys. KVzip is told where our context begins; else
it takes what its own template puts in front for the border.

`kept` is measured, not assumed: the cache's slots less those that a press masks, on average over heads. AdaKV and KVzip
mask slots per head and free none: `held` tells what stays in memory. kvpress masks by a key that all queries of a
forward pass point away from; with the many queries of a whole question there may be none, or one that still takes a
share of the attention. So under these presses a question is fed token by token, which masks fully, and is slower.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")  # before transformers is imported

import kvpress
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils.logging import disable_progress_bar

EPSILON = 1e-2
"""Of Expected Attention: that of kvpress's leaderboard, and of our own arm; by default kvpress takes 0."""

PRESSES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "random": kvpress.RandomPress,
    "streaming": lambda: kvpress.KeyRerotationPress(kvpress.StreamingLLMPress(n_sink=4)),
    "tova": kvpress.TOVAPress,
    "keydiff": kvpress.KeyDiffPress,
    "block-keydiff": lambda: kvpress.BlockPress(kvpress.KeyDiffPress(), block_size=128),  # as its paper has it
    "snapkv": kvpress.SnapKVPress,
    "ada-snapkv": lambda: kvpress.AdaKVPress(kvpress.SnapKVPress()),
    "expected-attention": lambda: kvpress.ExpectedAttentionPress(epsilon=EPSILON),
    "ada-expected-attention": lambda: kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(epsilon=EPSILON)),
    "kvzip": kvpress.KVzipPress,
    "finch": kvpress.FinchPress,
}
KNOWN_ONLY = ("finch",)
SHARED = 4
"""Contexts that are held for sharing: those asked for last."""

WATCH = 0.01
"""Seconds between two looks at the memory."""


class PressError(Exception):
    """What was asked cannot be done; the message says why."""


@dataclass(frozen=True)
class Reading:
    """What a press left of a prompt.

    Attributes:
        key: Of the request.
        cache: What is left.
        tokens: Tokens that were read.
        compressed: Whether there was anything to drop.
        kept: Per layer, the slots that can be attended to, averaged over heads.
        held: Per layer, the slots that take memory.
        position: Of the next token.
    """

    key: tuple[Any, ...]
    cache: DynamicCache
    tokens: int
    compressed: bool
    kept: list[float]
    held: list[int]
    position: int


@dataclass(frozen=True)
class Whole:
    """What was read of a prompt without a press.

    Attributes:
        cache: Keys and values of all tokens.
        inputs: What each layer's attention was given, [1, T, hidden_size] per layer.
    """

    cache: DynamicCache
    inputs: list[torch.Tensor]


class Peer:
    """A model that is read under presses."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
        )
        self.model = self.model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = self.model.config
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise PressError("some layers of this model slide, and kvpress would press those too: take another model")
        self.heads = int(config.num_key_value_heads)
        self.window = int(config.max_position_embeddings)
        self.last: Reading | None = None
        self.shared: dict[tuple[int, ...], Whole] = {}
        listed = self.model.generation_config.eos_token_id
        ends = [*(listed if isinstance(listed, list) else [listed]), self.tokenizer.eos_token_id]
        self.ends = {int(i) for i in ends if i is not None}

    @torch.inference_mode()
    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Read a context under a press, and answer its questions one by one from the same cache.

        Raises:
            PressError: The press cannot do this, or has not kept what it should.
        """
        name, context = request["press"], [*request["before"], *request["context"]]
        read, feeds, keep = context, request["behind"], int(request["keep"])
        if name not in PRESSES:
            raise PressError(f"there is no press {name!r} here: give one of {', '.join(PRESSES)}")
        if name in KNOWN_ONLY and not request["known"]:
            raise PressError(f"{name} needs the question while it reads: ask for it with the question known")
        if request["known"]:
            if len(feeds) != 1:
                raise PressError("with a known question, a reading serves one question")
            read, feeds = [*context, *feeds[0][:-1]], [feeds[0][-1:]]
            keep += len(read) - len(context)
        longest = len(read) + max(map(len, feeds)) + int(request["max_new_tokens"])
        if longest > self.window:
            raise PressError(f"prompt and answer take {longest} positions, and the model was trained on {self.window}")
        shares = request["share"] and name != "kvzip"
        key = (name, keep, tuple(read), len(context), request["known"], shares)
        reading, self.last = self.last, None  # never two of them in memory; none that a failure left half changed
        if reading is not None and reading.key != key:
            reading = None
        if shares:
            self._hold(context)
        with watched(self.model.device) as memory:
            started, seconds = time.perf_counter(), 0.0
            if reading is None:
                reading = self._read(key, keep, read, len(request["before"]), len(context))
                self._synchronise()
                seconds = time.perf_counter() - started
            answers = [self._say(reading, feed, request) for feed in feeds]
        self.last = reading
        if shares or not seconds:  # or it had been read before
            seconds, memory = 0.0, {"memory_bytes": None}
        return {
            "answers": answers,
            "read_tokens": reading.tokens,
            "compressed": reading.compressed,
            "kept": reading.kept,
            "held": reading.held,
            "read_seconds": seconds,
            **memory,
        }

    def _hold(self, context: list[int]) -> None:
        """Read a context without a press, if it is not held, and let go of the one asked for longest ago."""
        key = tuple(context)
        whole = self.shared.pop(key, None) or self._extended(None, context)
        self.shared[key] = whole
        if len(self.shared) > SHARED:
            del self.shared[next(iter(self.shared))]

    def _extended(self, whole: Whole | None, ids: list[int]) -> Whole:
        """Return what was read, and more behind it; what is given stays as it is."""
        cache = DynamicCache() if whole is None else copy.deepcopy(whole.cache)
        inputs = [] if whole is None else whole.inputs
        if not ids:
            return Whole(cache, inputs)
        given: list[torch.Tensor] = []
        hooks = [
            layer.self_attn.register_forward_pre_hook(
                lambda module, args, kwargs: given.append(kwargs["hidden_states"]), with_kwargs=True
            )
            for layer in self.model.model.layers
        ]
        try:
            self.model.model(input_ids=self._tensor(ids), past_key_values=cache)
        finally:
            for hook in hooks:
                hook.remove()
        return Whole(cache, [torch.cat([a, b], 1) for a, b in zip(inputs, given, strict=True)] if inputs else given)

    def _pressed(self, press: Any, whole: Whole, question: int) -> DynamicCache:
        """Call a press on what was read, as its hooks would have been at the end of each layer of one forward pass.

        Args:
            press: Of kvpress; None: nothing is dropped.
            whole: What was read; a press may change it.
            question: Tokens of a known question at its end.
        """
        if press is None:
            return whole.cache
        if isinstance(press, kvpress.FinchPress):
            press.delimiter_token_id, press.window_size = -1, question  # what it works out from a delimiter
        positions = torch.arange(whole.inputs[0].shape[1], device=self.model.device)
        rotations = self.model.model.rotary_emb(whole.inputs[0], positions[None])
        with press(self.model):
            for layer, given in zip(self.model.model.layers, whole.inputs, strict=True):
                kwargs = {
                    "hidden_states": given,
                    "past_key_values": whole.cache,
                    "cache_position": positions,
                    "position_embeddings": rotations,
                }
                press.forward_hook(layer.self_attn, [], kwargs, [None, None])
        return whole.cache

    def _read(self, key: tuple[Any, ...], keep: int, ids: list[int], before: int, border: int) -> Reading:
        """Forward a prompt under a press, so that exactly `keep` slots per layer are left on average.

        Args:
            key: Of the request; its first item names the press, its last says whether the context is held.
            keep: Slots to keep; a prompt that has no more is read without the press.
            ids: The prompt.
            before: Tokens of it before the document.
            border: Tokens of it before the question, where that is known.

        Raises:
            PressError: Something else was kept.
        """
        cache, size, prompt = DynamicCache(), len(ids), ids
        press = PRESSES[key[0]]() if keep < size else None
        torch.manual_seed(0)  # for the random press
        if isinstance(press, kvpress.KVzipPress):
            press.compression_ratio = (size - keep + 0.5 / (self.heads * len(self.model.model.layers))) / size
        elif press is not None:
            press.compression_ratio = 1 - (keep + 0.5) / size  # both are rounded down to whole slots
        if key[-1]:
            for layer in self.model.model.layers:  # kvpress forgets what is masked when it reads from the beginning
                layer.self_attn.masked_key_indices = None
            whole = self._extended(self.shared[tuple(ids[:border])], ids[border:])
            cache = self._pressed(press, whole, size - border)
        else:
            if isinstance(press, kvpress.FinchPress):
                # Any token that the prompt lacks will do: Finch drops its embedding again. So the model stays as it is.
                used = set(ids)
                press.delimiter_token_id = next(i for i in range(self.model.config.vocab_size) if i not in used)
                prompt = [*ids[:border], press.delimiter_token_id, *ids[border:]]
            with press(self.model) if press is not None else contextlib.nullcontext():
                if isinstance(press, kvpress.KVzipPress):
                    press.prefix_length = before
                self.model.model(input_ids=self._tensor(prompt), past_key_values=cache)
        held = [int(layer.keys.shape[2]) for layer in cache.layers]
        masked = self._masked() or [0] * len(held)
        kept = [slots - hidden / self.heads for slots, hidden in zip(held, masked, strict=True)]
        wanted = keep if press is not None else size
        if abs(sum(kept) - wanted * len(kept)) > 1e-6:
            raise PressError(f"{key[0]} kept {sum(kept) / len(kept):.1f} slots per layer in place of {wanted}")
        return Reading(key, cache, size, press is not None, kept, held, held[0] if _rotates_again(press) else size)

    def _masked(self) -> list[int]:
        """Return how many slots of all heads are masked, per layer; nothing where the press masks none."""
        found = [getattr(layer.self_attn, "masked_key_indices", None) for layer in self.model.model.layers]
        return [len(places[1]) for places in found if places is not None]  # (batch, head, slot), each [masked slots]

    def _say(self, reading: Reading, feed: list[int], request: dict[str, Any]) -> dict[str, Any]:
        """Feed a question, decode greedily, and leave the cache as it was."""
        started = time.perf_counter()
        cache, at = reading.cache, reading.position
        for piece in [[token] for token in feed] if self._masked() else [feed]:
            said = [self._next(cache, piece, at)]
            at += len(piece)
        limit, stop = request["max_new_tokens"], request["stop"]
        while not (said[-1] in self.ends or len(said) == limit or self._stopped(said, stop)):
            said.append(self._next(cache, said[-1:], at))
            at += 1
        for layer, size in zip(cache.layers, reading.held, strict=True):
            layer.keys, layer.values = layer.keys[:, :, :size], layer.values[:, :, :size]
        return {"ids": said, "ended": said[-1] in self.ends, "seconds": time.perf_counter() - started}

    def _next(self, cache: DynamicCache, feed: list[int], at: int) -> int:
        """Forward tokens from position `at` on; return the likeliest next one."""
        positions = torch.arange(at, at + len(feed), device=self.model.device)[None]
        out = self.model(input_ids=self._tensor(feed), past_key_values=cache, position_ids=positions, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())

    def _stopped(self, ids: list[int], stop: list[str]) -> bool:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if stop else ""
        return any(s in text for s in stop)

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)

    def _synchronise(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def _rotates_again(press: Any) -> bool:
    return isinstance(press, kvpress.KeyRerotationPress) or (
        isinstance(press, kvpress.FinchPress) and press.rerotate_keys
    )


def anonymous_bytes() -> int | None:
    """Return RssAnon of this process; None where there is no such thing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return None


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[dict[str, int | None]]:
    """Fill in memory_bytes, counted as `models.resources.memory_taken` does: added to RssAnon, or on a GPU."""
    memory: dict[str, int | None] = {"memory_bytes": None}
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        base = torch.cuda.memory_allocated(device)
        yield memory
        memory["memory_bytes"] = torch.cuda.max_memory_allocated(device) - base
        return
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    before = anonymous_bytes()
    if before is None:
        yield memory
        return
    most, done = before, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(WATCH):
            most = max(most, anonymous_bytes() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()
        memory["memory_bytes"] = max(most, anonymous_bytes() or 0) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(values: dict[str, Any]) -> None:
        lines.write(json.dumps(values) + "\n")
        lines.flush()

    disable_progress_bar()
    try:
        peer = Peer(args.model, args.device, args.dtype)
    except Exception as error:  # a folder of any content: the other side says it
        tell({"error": _sentence(error)})
        sys.exit(1)
    tell({"presses": list(PRESSES), **{name: version(name) for name in ("kvpress", "transformers", "torch")}})
    for line in sys.stdin:
        try:
            tell(peer.answer(json.loads(line)))
        except Exception as error:  # kvpress asserts what it cannot do; the next request may be fine
            tell({"error": _sentence(error), "out_of_memory": _is_out_of_memory(error)})


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory, of the machine or of a GPU, ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _sentence(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return first if isinstance(error, PressError) else f"{type(error).__name__}: {first}"


if __name__ == "__main__":
    main()
