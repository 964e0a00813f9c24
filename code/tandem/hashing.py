"""Hashes of files, which identify weights. Does not import torch."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import InputError
from tandem.timing import timed
from tandem.user_files import cause_of, shown


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file."""
    with Path(path).open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Files are hashed one at a time: the largest of a job is most of its bytes, and the other cores start Ray
_turn = threading.Lock()


@dataclass(frozen=True)
class Fingerprint:
    """A file of one machine and its last change. Whoever writes to the file changes it."""

    machine: str
    device: int
    inode: int
    size: int
    changed_ns: tuple[int, int]  # content, and content or metadata

    @classmethod
    def of(cls, path: str | Path) -> Fingerprint:
        """Raises OSError."""
        found = os.stat(path)
        changed_ns = found.st_mtime_ns, found.st_ctime_ns
        return cls(platform.node(), found.st_dev, found.st_ino, found.st_size, changed_ns)


class FileHash:
    """The sha256 of a file. A thread works it out from now on, at about 1 GB/s, while its owner does something else.

    Sent to another process, it is what was found: there, `unchanged` spares a second reading of the same file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._found = Path(path), Future[tuple[str, Fingerprint | None]]()
        # a daemon: a command that ends with an error does not wait for it
        threading.Thread(target=self._find, name=f"hash {path}", daemon=True).start()

    @classmethod
    def known(cls, sha256: str, path: Path | None = None) -> FileHash:
        """Of a file whose content has been checked, or that is not on this machine."""
        return _known(sha256, path, Fingerprint.of(path) if path else None)

    def _find(self) -> None:
        try:
            with _turn:
                before, sha256 = Fingerprint.of(self._path), file_sha256(self._path)
            self._found.set_result((sha256, before if before == Fingerprint.of(self._path) else None))
        except Exception as error:
            self._found.set_exception(error)

    @property
    def sha256(self) -> str:
        """In hex; waits for it. InputError where the file cannot be read."""
        return self._wait()[0]

    @property
    def unchanged(self) -> Path | None:
        """The file that was hashed, if it is on this machine and nobody has written to it since."""
        fingerprint = self._wait()[1]
        try:
            return self._path if fingerprint is not None and fingerprint == Fingerprint.of(self._path) else None
        except OSError:
            return None

    def _wait(self) -> tuple[str, Fingerprint | None]:
        try:
            with timed("hash"):
                return self._found.result()
        except OSError as error:
            raise InputError(f"{shown(str(self._path))}: cannot be read: {cause_of(error)}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileHash) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __reduce__(self) -> tuple[Any, ...]:
        sha256, fingerprint = self._wait()
        return _known, (sha256, self._path, fingerprint)


def _known(sha256: str, path: Path | None, fingerprint: Fingerprint | None) -> FileHash:
    found = FileHash.__new__(FileHash)
    found._path, found._found = path or Path(), Future()
    found._found.set_result((sha256, fingerprint))
    return found
