"""Small JSON files that carry a hash of themselves: manifest entries, `job.json`, `_SUCCESS`.

The last value of the object is `sha256`, the hash of all bytes before its line, so any changed bit is detected. Files
of older versions have no seal and are accepted without it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

KEY = "sha256"
MAX_BYTEWISE = 4096  # file size up to which every value of every byte is tried, which takes some seconds
_END = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n\}\n\Z')


class DamagedError(ValueError):
    """A sealed file was changed, or is not a JSON object. The message continues after the file's name."""


def seal(values: Mapping[str, Any]) -> bytes:
    """Indented JSON of an object with at least one key, and its seal."""
    text = json.dumps(values, indent=2).encode().removesuffix(b"\n}")
    return text + _end_of(text)


def is_sealed(data: bytes) -> bool:
    """Whether a file ends like a sealed one."""
    return _END.search(data) is not None


def open_sealed(data: bytes, keys: Collection[str]) -> dict[str, Any]:
    """The object without its seal. DamagedError if the seal does not match.

    `keys`: allowed keys of files without a seal, so that a damaged seal is not taken for a missing one.
    """
    end = _END.search(data)
    if end and hashlib.sha256(data[: end.start()]).hexdigest().encode() != end[1]:
        raise DamagedError("is damaged: its content does not match its own sha256")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DamagedError("is not a JSON object")
    if end:
        del values[KEY]
    elif unknown := sorted(set(values) - set(keys)):
        raise DamagedError(f"is damaged, or from a newer version: unexpected {unknown[0]!r}")
    return values


def mend(data: bytes) -> bytes | None:
    """The sealed file before one byte (in a long file: one bit) changed. None if more has changed."""
    length = len(_end_of(b""))
    text, end = data[:-length], data[-length:]
    if not text:
        return None
    if sum(a != b for a, b in zip(_end_of(text), end, strict=False)) == 1:
        return text + _end_of(text)
    if not _END.fullmatch(end):
        return None
    digest = bytes.fromhex(end[len(end) - 68 : len(end) - 4].decode())
    changes = range(1, 256) if len(text) <= MAX_BYTEWISE else [1 << bit for bit in range(8)]
    before = hashlib.sha256()
    for at, byte in enumerate(text):
        rest = text[at + 1 :]
        for change in changes:
            found = before.copy()
            found.update(bytes([byte ^ change]) + rest)
            if found.digest() == digest:
                return text[:at] + bytes([byte ^ change]) + rest + end
        before.update(text[at : at + 1])
    return None


def _end_of(text: bytes | bytearray) -> bytes:
    return f',\n  "{KEY}": "{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode()
