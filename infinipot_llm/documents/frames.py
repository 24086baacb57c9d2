"""Messages to and from the process that parses: JSON objects, each with its length before it.

JSON and not pickle: what a parser of hostile data says is data, too.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

_LENGTH = struct.Struct(">I")

MAX_BYTES = 16 * 2**20
"""Longest message that is read; a page at its longest (`Limits.page_characters`) takes 12 bytes a character."""


def write(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Write one message and hand it on at once; lone surrogates come through."""
    encoded = json.dumps(message).encode("ascii")
    stream.write(_LENGTH.pack(len(encoded)) + encoded)
    stream.flush()


def read(stream: BinaryIO) -> dict[str, Any] | None:
    """Read one message, or None at the end of the stream.

    Raises:
        ValueError: If what comes is no message, or one that is too long.
    """
    head = stream.read(_LENGTH.size)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise ValueError("a message was cut short")
    (length,) = _LENGTH.unpack(head)
    if length > MAX_BYTES:
        raise ValueError(f"a message claims {length} bytes")
    body = stream.read(length)
    if len(body) < length:
        raise ValueError("a message was cut short")
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("a message is no object")
    return message
