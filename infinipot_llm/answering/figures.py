"""Figures of an answer that stand nowhere in what it was answered from: worked out, or made up.

A small model that finds no figure invents one that reads as well as a true one. What it was shown can be searched, so
this takes no model. Figures of one digit are left out, since texts write them as words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import torch

from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.models.text import TextCodec, TokenizedText
from infinipot_llm.pot.pot import Pot

_FIGURE = re.compile(r"\d(?:[.,'’]?\d)*")
_CUT = re.compile(r"[\d.,'’]+\Z")
_GROUPED = re.compile(r"(?<!\d)\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)")
"""Thousands told apart by blanks: 1 500 000."""


def unfounded(answer: str, shown: str, *, ended: bool = True) -> list[str]:
    """Return the figures of an answer, of two digits or more, that what was shown does not hold, each once.

    Args:
        answer: What the model said.
        shown: All that it could see.
        ended: Whether it ended by itself; one that was cut off may end within a figure, which then says nothing.
    """
    answer = answer if ended else _CUT.sub("", answer)
    said = {plain: figure for figure in _FIGURE.findall(answer) if len(plain := _plain(figure)) > 1}
    if not said:
        return []
    there = {_plain(figure) for figure in (*_FIGURE.findall(shown), *_GROUPED.findall(shown))}
    joined = {_plain(part) for figure in _GROUPED.findall(answer) if _plain(figure) in there for part in figure.split()}
    return [figure for plain, figure in said.items() if plain not in there | joined]


def shown_to(codec: TextCodec, pot: Pot, text: TokenizedText, prompt: Prompt) -> str:
    """Return all that an answer could see: the document's tokens in the pot, and the prompt around them.

    What only some heads hold counts as seen. Tokens that do not follow one another in the document are told apart.
    """
    tokens = pot.tokens.cpu()
    runs = tokens.tensor_split((torch.where(tokens.diff() > 1)[0] + 1).tolist())
    pieces: list[Sequence[int]] = [*(text.ids[run.numpy()].tolist() for run in runs), prompt.before, prompt.behind]
    names = [document.name for document in text.documents] if len(text.documents) > 1 else []
    return "\n".join([*map(codec.decode, pieces), *names])


def _plain(figure: str) -> str:
    """Return a figure's digits alone, without zeros in front: "0,412,650" is 412650.

    Which separator ends thousands and which begins decimals differs between languages, so neither counts.
    """
    digits = "".join(str(unicodedata.digit(c)) for c in figure if c.isdecimal())
    return digits.lstrip("0") or "0"
