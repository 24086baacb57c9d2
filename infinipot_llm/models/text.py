"""Text to tokens and back, with trusted and untrusted text kept apart.

Template pieces may become control tokens; a document, a question or a title never may: "<|im_end|>" inside a document
stays ten harmless characters. Every token of a document can be traced to its characters.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infinipot_llm.documents import Document, Span
from infinipot_llm.errors import ModelError

BLOCK_CHARACTERS = 8192
"""Documents are tokenised in blocks of about this many characters, so that memory stays flat."""


_LINE_BREAK = re.compile(r"(?<=\S)\n(?=\S)")
_BLANK = re.compile(r"(?<=\S) (?=\S)")


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one or several documents, in reading order, each traceable to its characters.

    Attributes:
        documents: The documents, in order.
        ids: [N] int32, token ids.
        starts: [N] int32, first character of each token in its document.
        ends: [N] int32, one past its last character.
        first: [documents + 1] int64, index of each document's first token.
    """

    documents: tuple[Document, ...]
    ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    first: NDArray[np.int64]

    def __len__(self) -> int:
        """Return N, the number of tokens."""
        return len(self.ids)

    def document_of(self, token: int) -> int:
        """Return the index of the document that a token belongs to."""
        return int(np.searchsorted(self.first, token, side="right")) - 1

    def span(self, token: int, end: int | None = None) -> Span:
        """Return the passage of token `token`, or of the tokens token .. end - 1 of one document."""
        last = token if end is None else end - 1
        document = self.documents[self.document_of(token)]
        return document.span(int(self.starts[token]), int(self.ends[last]))

    def per_document(self, start: int, end: int) -> list[tuple[int, int]]:
        """Cut the token range [start, end) at the borders of documents, leaving out tokens without characters."""
        cuts = [start, *(int(f) for f in self.first if start < f < end), end]
        found = []
        for a, b in pairwise(cuts):
            visible = np.flatnonzero(self.ends[a:b] > self.starts[a:b])
            if len(visible):
                found.append((a + int(visible[0]), a + int(visible[-1]) + 1))
        return found

    def tokens_in(self, document: int, start: int, end: int) -> tuple[int, int]:
        """Return the token range [a, b) that overlaps the characters [start, end) of a document."""
        lo, hi = int(self.first[document]), int(self.first[document + 1])
        a = lo + int(np.searchsorted(self.ends[lo:hi], start, side="right"))
        b = lo + int(np.searchsorted(self.starts[lo:hi], end, side="left"))
        return a, max(a, b)


class TextCodec:
    """A model's tokenizer, used in the two ways that this package needs."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a fast tokenizer of transformers.

        Raises:
            ModelError: The tokenizer cannot report character offsets, or loses text on the way there and back.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "this model's tokenizer has no fast version, which character offsets need: choose another model."
            )
        self.tokenizer = tokenizer
        self._lock = threading.RLock()  # a fast tokenizer keeps "split special tokens" as state of its own
        # Gemma adds runs of blanks and line breaks to its vocabulary: they control nothing.
        added = {text: i for text, i in tokenizer.get_added_vocab().items() if text.strip(" \t\r\n▁")}
        self._added_ids = np.asarray(sorted(added.values()), dtype=np.int64)
        literals = sorted((t for t in added if len(t) > 1), key=len, reverse=True)
        first = "".join(sorted({re.escape(t[0]) for t in literals}))  # a quick look, where there are thousands of them
        any_of = "|".join(map(re.escape, literals))
        self._added_pattern = re.compile(f"(?=[{first}])(?={any_of})") if literals else None
        self._check_round_trip()

    def trusted(self, text: str) -> list[int]:
        """Tokenise a template piece: control tokens written in it become control tokens."""
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def untrusted(self, text: str) -> list[int]:
        """Tokenise text from outside: it never becomes a control token."""
        return [int(i) for ids, _ in self._blocks(text) for i in ids]

    def document(self, documents: Sequence[Document], before: TokenizedText | None = None) -> TokenizedText:
        """Tokenise whole documents, keeping the characters of every token.

        Several documents are told apart by a line with the name of each; its tokens stand for no characters.

        Args:
            documents: What to tokenise.
            before: Tokens that these come behind, as they are.
        """
        ids: list[NDArray[np.int32]] = [before.ids] if before else []
        offsets: list[NDArray[np.int32]] = [np.stack([before.starts, before.ends], axis=1)] if before else []
        first = [int(f) for f in before.first] if before else [0]
        earlier = before.documents if before else ()
        for number, document in enumerate(documents, start=len(earlier)):
            count = 0
            if len(earlier) + len(documents) > 1:
                gap = "\n\n" if number else ""
                header = self.untrusted(f"{gap}{document.name}:\n")
                ids.append(np.asarray(header, dtype=np.int32))
                offsets.append(np.zeros((len(header), 2), dtype=np.int32))
                count = len(header)
            for block, where in self._blocks(document.text):
                ids.append(block)
                offsets.append(where)
                count += len(block)
            first.append(first[-1] + count)
        both = np.concatenate(offsets) if offsets else np.zeros((0, 2), np.int32)
        flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        return TokenizedText(
            (*earlier, *documents), flat, both[:, 0].copy(), both[:, 1].copy(), np.asarray(first, np.int64)
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens, control tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def piece(self, token_id: int) -> str:
        """Return the text of one token, as it is (for traces)."""
        return str(self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))

    def _blocks(self, text: str) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Yield (ids [n], offsets [n, 2]) of consecutive blocks of untrusted text."""
        cuts = self._cuts(text)
        for start, end in pairwise(cuts):
            with self._lock:
                encoded = self.tokenizer(
                    text[start:end], add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
                )
            ids = np.asarray(encoded["input_ids"], dtype=np.int32).reshape(-1)
            if np.isin(ids, self._added_ids).any():
                raise ModelError("this tokenizer turns plain text into control tokens: it cannot be used safely here.")
            yield ids, np.asarray(encoded["offset_mapping"], dtype=np.int32).reshape(-1, 2) + start

    def _cuts(self, text: str) -> list[int]:
        """Return block borders: after a line break where possible, and inside every literal of an added token.

        Tokenizers split text at line breaks before anything else, so a cut there changes no token. A cut inside a
        literal such as "<tool_call>", which some tokenizers recognise even when told to split special tokens, keeps
        it plain.
        """
        inside = [m.start() + 1 for m in self._added_pattern.finditer(text)] if self._added_pattern else []
        borders = [0]
        while len(text) - borders[-1] > BLOCK_CHARACTERS:
            low, high = borders[-1] + BLOCK_CHARACTERS // 2, borders[-1] + BLOCK_CHARACTERS
            safe = [m.end() for m in _LINE_BREAK.finditer(text, low, high)]
            safe = safe or [m.start() for m in _BLANK.finditer(text, low, high)]
            borders.append(safe[-1] if safe else high)
        return sorted({*borders, *inside, len(text)})

    def _check_round_trip(self) -> None:
        """Refuse a tokenizer that loses text, as a byte-level one does when its decoder got lost in a conversion."""
        for sample in (
            "Pump 68211 cost 3.14 crowns,\n and so on.",
            "élan naïve",
            "東京は日本の首都",
            "한국어 문서",
            "نص عربي",
        ):
            back = self.tokenizer.decode(self.untrusted(sample), clean_up_tokenization_spaces=False)
            if "".join(back.split()) != "".join(sample.split()) and self.tokenizer.unk_token_id not in self.untrusted(
                sample
            ):
                raise ModelError(
                    f"this model's tokenizer does not give back the text it is given ({sample!r} became {back!r}): "
                    "fetch the model again, or update transformers."
                )
