"""PDFs for tests, damaged ones among them, and a way to tamper with the process that parses them."""

from __future__ import annotations

import io
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfWriter
from reportlab.pdfgen.canvas import Canvas

from infinipot_llm.documents import process

SHARED = Path(__file__).parents[3] / "shared" / "data"
HOSTILE = SHARED / "pdf-hostile"

_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)


def in_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have code run in every parsing process that is started from now on, before it begins."""
    before, marker, after = process._BOOT.partition("from infinipot_llm.documents.worker")
    monkeypatch.setattr(process, "_BOOT", f"{before}exec({code!r});{marker}{after}")


def make_pdf(*pages: str, font: str = "Helvetica") -> bytes:
    stream = io.BytesIO()
    canvas = Canvas(stream, invariant=True)
    for page in pages:
        canvas.setFont(font, 12)
        for row, line in enumerate(page.splitlines()):
            canvas.drawString(72, 750 - 15 * row, line)
        canvas.showPage()
    canvas.save()
    return stream.getvalue()


def rewrite(data: bytes, change: Callable[[PdfWriter], Any]) -> bytes:
    writer = PdfWriter(clone_from=io.BytesIO(data))
    change(writer)
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def bomb(megabytes: int) -> bytes:
    """Make a PDF of one page whose content is zeros, compressed twice: some kilobytes that stand for megabytes."""
    body = zlib.compress(zlib.compress(b"\n" * (megabytes * 2**20), 9), 9)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>",
        b"<</Filter[/FlateDecode/FlateDecode]/Length %d>>\nstream\n%b\nendstream" % (len(body), body),
    ]
    return (
        b"%PDF-1.7\n"
        + b"".join(b"%d 0 obj\n%b\nendobj\n" % item for item in enumerate(objects, 1))
        + (b"trailer\n<</Root 1 0 R/Size 5>>\n%%EOF\n")
    )


def hostile_files() -> list[tuple[str, Path, str | None, int | None]]:
    """List the real awkward files: name, path, password, pages (None where the list does not say)."""
    listed = {entry["path"]: entry for entry in json.loads((HOSTILE / "files.json").read_text())["data"]}
    found = []
    for path in sorted(HOSTILE.glob("*/*.pdf")):
        entry = listed.get(path.relative_to(HOSTILE).as_posix(), {})
        # The list does not give the one password there is; the collection documents it.
        password = entry.get("password", "openpassword") if entry.get("encrypted") else None
        found.append((path.name, path, password, entry.get("pages")))
    return found


def mutants(sources: list[bytes], count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Damage files, each time in one of five ways: cut off, cut out, bytes flipped, streams swapped, numbers changed.

    Args:
        sources: Files that are damaged in turn.
        count: How many to make.
        seed: The same seed gives the same mutants.
    """
    chance = random.Random(seed)
    for number in range(count):
        source = number % len(sources)
        yield source, _mutant(sources[source], chance, number // len(sources) % 5)


def _mutant(whole: bytes, chance: random.Random, way: int) -> bytes:
    data = bytearray(whole)
    if way == 0:
        del data[chance.randrange(20, len(data)) :]
    elif way == 1:
        start = chance.randrange(20, len(data))
        del data[start : start + chance.randrange(1, max(2, len(data) // 4))]
    elif way == 2:
        for _ in range(chance.choice([1, 10, 100, 1000])):
            data[chance.randrange(9, len(data))] ^= 1 << chance.randrange(8)
    elif way == 3:
        streams = list(_STREAM.finditer(whole))
        if len(streams) > 1:
            one, two = sorted(chance.sample(streams, 2), key=lambda match: match.start())
            data = bytearray(
                whole[: one.start(1)] + two[1] + whole[one.end(1) : two.start(1)] + one[1] + whole[two.end(1) :]
            )
    else:
        numbers = list(re.finditer(rb"\d+", whole))
        for match in sorted(chance.sample(numbers, min(len(numbers), 8)), key=lambda match: -match.start()):
            # The file's offsets are kept, so that what is wrong is the number and not all that follows it.
            data[match.start() : match.end()] = bytes(chance.choice(b"0123456789") for _ in match[0])
    return bytes(data)
