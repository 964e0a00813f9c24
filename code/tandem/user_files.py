"""Reads users' text and JSON files with limits. Every error is one sentence."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tandem.errors import InputError

MAX_TEXT_BYTES = 16 << 20
MAX_DEPTH = 64  # of nested values: Arrow and parquet recurse into them, and crash the process at some hundreds
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4096  # limits of Linux; that of paths includes the final zero byte
ADDRESS = re.compile(r"(s3[an]?|gs|gcs|hf|https?|ftp|file|hdfs|abfss?|wasbs?|az):", re.IGNORECASE)
MAX_SHOWN = 200  # characters of a path in a message


def read_text(path: str | Path, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of a UTF-8 file, without its byte order mark. InputError that names the file and the cause."""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"cannot read {shown(path)}: {cause_of(error)}") from error
    if len(data) > most_bytes:
        raise InputError(f"{shown(path)}: expected at most {most_bytes:,} bytes of text, got more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"{shown(path)}, line {data[: error.start].count(10) + 1}"
        raise InputError(f"{place}: not UTF-8 (byte 0x{data[error.start]:02x})", "save it as UTF-8") from None


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file. Raises OSError, as reading does, for names that the system refuses."""
    try:
        return Path(path).is_file()
    except ValueError as error:
        raise OSError(0, cause_of(error)) from error


def check_local(text: str) -> None:
    """Raise ValueError unless a text can be a path on this machine: not an address, and not an impossible name."""
    if ADDRESS.match(text):
        raise ValueError(f"expected a path on this machine, got the address {shown(text)}")
    if any(len(name.encode()) > MAX_NAME_BYTES for name in text.split("/")) or len(text.encode()) >= MAX_PATH_BYTES:
        raise ValueError(f"expected names of at most {MAX_NAME_BYTES} bytes and a shorter path, got {shown(text)}")


def check_spelling(address: str) -> None:
    """Raise InputError for an address with too few slashes, which would pass for a path."""
    if (scheme := ADDRESS.match(address)) and "://" not in address:
        raise InputError(f"expected {scheme[1].lower()}://..., got {shown(address)}", "a file of that name is ./NAME")


def cause_of(error: Exception) -> str:
    """Why a file cannot be used, without its name."""
    return getattr(error, "strerror", None) or str(error)


def shown(value: object, limit: int = MAX_SHOWN) -> str:
    """A path or another value for a message: on one line, with long ones cut in the middle."""
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: 2 * limit])
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"


def parse_json(text: str) -> Any:
    """A JSON value of at most MAX_DEPTH levels, with finite numbers and each key of an object once.

    Raises ValueError, a sentence, for anything else.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(f"expected at most {MAX_DEPTH} levels of nested values, got more") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except InputError:
        raise
    except ValueError:  # of int(): more digits than Python reads
        raise ValueError("expected numbers of at most 4,300 digits, got more") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """ValueError for lists and objects nested deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"expected at most {MAX_DEPTH} levels of nested values, got more")


def repeated(names: Iterable[str], most: int = 5) -> str:
    """Names that occur more than once, for a message; "" if there are none."""
    twice = [shown(repr(name), 60) for name, count in Counter(names).items() if count > 1]
    return ", ".join(twice[:most]) + (f" and {len(twice) - most} more" if len(twice) > most else "")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise InputError(f"expected every key once, got {repeated(name for name, _ in pairs)} twice or more")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise InputError(f"expected numbers below 1.8e308, got {shown(text, 60)}")
    return value


def _no_constant(text: str) -> float:
    raise InputError(f"expected a number or null, got {text}")


def write_whole(path: Path, text: str) -> None:
    """Write a file beside and rename it: whoever reads it, and a run that is killed, has the old one or the new one."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(text)
    beside.replace(path)
