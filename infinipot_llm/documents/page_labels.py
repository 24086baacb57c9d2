"""Printed page numbers of a PDF, such as "iv" or "A-3" (PDF 2.0, 12.4.2), from its number tree, on objects of pypdf."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

_MOST_NODES, _MOST_RANGES = 10_000, 200_000
_LONGEST_PREFIX = 100
_ROMAN = tuple(zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
                   ("M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"), strict=True))  # fmt: skip
_LARGEST = 100_000
"""A number above it is no page's: as letters or Roman numerals it would be long."""


def page_labels(root: Any, count: int) -> list[str]:
    """Return the label of every page, "" for pages that have none; nothing if the PDF defines no labels.

    Args:
        root: The document's catalogue.
        count: Number of pages.
    """
    if "/PageLabels" not in root:
        return []
    ranges = _ranges(root["/PageLabels"].get_object())
    firsts = sorted(ranges)
    labels = []
    for index in range(count):
        at = bisect_right(firsts, index) - 1
        labels.append("" if at < 0 else _label(ranges[firsts[at]], index - firsts[at]))
    return labels


def _ranges(tree: Any) -> dict[int, Any]:
    """Return how each range is labelled, by its first page, out of a number tree, which may hold itself."""
    ranges: dict[int, Any] = {}
    waiting, looked_at = [tree], 0
    while waiting and looked_at < _MOST_NODES and len(ranges) < _MOST_RANGES:
        node, looked_at = waiting.pop(), looked_at + 1
        numbers = list(node.get("/Nums", ()))
        for first, how in zip(numbers[::2], numbers[1::2], strict=False):
            ranges[int(first.get_object())] = how.get_object()
        room = _MOST_NODES - len(waiting)
        waiting += [kid.get_object() for kid in list(node.get("/Kids", ()))[:room]]
    return ranges


def _label(how: Any, further: int) -> str:
    """Return the label of the page so many pages behind the first of its range."""
    number = int(how.get("/St", 1)) + further
    return str(how.get("/P", ""))[:_LONGEST_PREFIX] + _numeral(str(how.get("/S", "")), number)


def _numeral(style: str, number: int) -> str:
    """Write a number as a style says; nothing for a style that there is not, or a number that it cannot write."""
    if style == "/D":
        return str(number)
    if style not in ("/R", "/r", "/A", "/a") or not 0 < number <= _LARGEST:
        return ""
    if style in ("/A", "/a"):  # A to Z, AA to ZZ, AAA to ZZZ
        text = chr(ord("A") + (number - 1) % 26) * ((number - 1) // 26 + 1)
    else:
        text = ""
        for value, letters in _ROMAN:
            times, number = divmod(number, value)
            text += letters * times
    return text if style.isupper() else text.lower()
