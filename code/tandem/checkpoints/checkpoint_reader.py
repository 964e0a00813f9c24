"""Reads weights files: detects the type by the first bytes, and loads the content without running any code in it.

torch files are read with `weights_only=True` and an explicit list of harmless classes, safetensors by their library.
Both are memory-mapped. The error for any other file says what it is.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import safe_globals

from tandem.errors import CheckpointError
from tandem.user_files import MAX_TEXT_BYTES, parse_json

METADATA_KEY = "tandem"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
DOWNLOAD_AGAIN = "download the file again and compare its size with that at the source"

# What a server may have sent instead of the file: its first bytes, its type, and the remedy
STAND_INS = (
    (rb"version https://git-lfs", "a git-LFS pointer, not the weights", "git lfs pull fetches the file it points to"),
    (rb"(?i)\s*<(!doctype html|html|head|body)", "a web page", "download the file itself, not the page that shows it"),
    (rb"\s*<\?xml|\s*<Error>", "an XML answer from a server", "open it to see the cause, then download the file again"),
    (rb"\s*[{\[]", "JSON text", "open it to see what the server answered, then download the file again"),
    (rb"\x1f\x8b", "a gzip archive", "unpack it first"),
    (rb"7z\xbc\xaf|Rar!|BZh|\xfd7zXZ", "a compressed archive", "unpack it first"),
)


def _numpy_globals() -> list[Any]:
    """Classes by which numpy 1 and 2 pickle scalars and arrays. They hold data and run no code."""
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}  # of all dtypes but objects
    rebuilders: list[Any] = [np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    named = [(f, f"{module}.{f.__name__}") for f in rebuilders for module in modules]
    return [np.ndarray, np.dtype, *kinds, *named]


# Allowed besides tensors and plain containers; all of them only hold values
HARMLESS: list[Any] = [*_numpy_globals(), argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath]


def read_weights(path: Path) -> tuple[Any, dict[str, Any]]:
    """The object in a file (tensors memory-mapped) and the header of our own files, else {}. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a weights file, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not size:
        raise CheckpointError(f"{path}: an empty file", DOWNLOAD_AGAIN)
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_bytes <= MAX_HEADER_BYTES:
        return read_safetensors(path, size, header_bytes)
    if head[:4] == b"PK\x03\x04":
        check_archive(path, size)
        return read_torch(path, mapped=path.suffix != ".safetensors"), {}
    for pattern, what, hint in STAND_INS:
        if re.match(pattern, head):
            raise CheckpointError(f"{path}: {what}", hint)
    # torch before 1.6: a bare pickle, which cannot be mapped
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return read_torch(path, mapped=False), {}
    raise CheckpointError(f"{path}: neither a torch file nor safetensors: it begins with {head[:8]!r}", DOWNLOAD_AGAIN)


def check_archive(path: Path, size: int) -> None:
    """Raise CheckpointError unless a file that begins as a zip archive is one that torch.save wrote."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: cut off: a corrupt torch file of {size:,} bytes, whose end is missing", DOWNLOAD_AGAIN
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: a corrupt zip archive: {one_line(error)}", DOWNLOAD_AGAIN) from error
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path}: a TorchScript program, not a file of tensors", "save the model's state_dict()")
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path}: a zip archive of other files ({', '.join(names[:3])})", "unpack it first")
    # torch never compresses; unpacked, such a file could have any size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path}: expected a torch file as torch.save writes it, got compressed entries")


def read_torch(path: Path, mapped: bool) -> Any:
    """Load a file of torch.save. Hides torch's warnings, which advise loading without checks."""
    try:
        with safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if mapped:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:  # given the name, torch would read it as safetensors
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path}: not plain weights: it wants to run {name[1]}",
                "only tensors in plain containers are loaded: save the model's state_dict()",
            ) from error
        raise CheckpointError(f"{path}: a corrupt torch file, or no weights at all", DOWNLOAD_AGAIN) from error
    except Exception as error:  # arbitrary bytes raise anything: struct, lookup, unicode, memory errors and more
        cause = one_line(error)
        known = f": {cause}" if cause and "weights_only" not in cause else ""
        raise CheckpointError(f"{path}: a corrupt torch file{known}", DOWNLOAD_AGAIN) from error


def read_safetensors(path: Path, size: int, header_bytes: int) -> tuple[Any, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        expected = expected_size(path, header_bytes)
        if expected is not None and size < expected:
            what = f"cut off: a corrupt safetensors file, expected {expected:,} bytes, got {size:,}"
            raise CheckpointError(f"{path}: {what}", DOWNLOAD_AGAIN) from error
        raise CheckpointError(f"{path}: not a readable safetensors file: {one_line(error)}", DOWNLOAD_AGAIN) from error
    try:
        if len(text := metadata.get(METADATA_KEY, "{}")) > MAX_TEXT_BYTES:
            raise ValueError(f"expected at most {MAX_TEXT_BYTES:,} characters, got {len(text):,}")
        header = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its header: {one_line(error)}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header: expected a JSON object, got {header!r:.60}")
    return tensors, header


def expected_size(path: Path, header_bytes: int) -> int | None:
    """Bytes that a safetensors file should have by its own header; None if the header cannot be read."""
    with path.open("rb") as file:
        file.seek(8)
        raw = file.read(header_bytes)
    if len(raw) < header_bytes:
        return 8 + header_bytes
    if len(raw) > MAX_TEXT_BYTES:
        return None
    try:
        entries = cast(dict[str, Any], json.loads(raw))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return int(8 + header_bytes + max(ends, default=0))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
