"""Stores for datasets. A file that is put is never overwritten, and is complete or does not exist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from tandem.errors import InputError

TEMPORARY = ".tmp"
# A temporary file lives for the seconds of one write. Age is the only safe sign of a dead writer: process ids mean
# nothing across containers and nodes that share a directory.
TEMPORARY_LIFE_S = 3600.0


@dataclass(frozen=True)
class Stored:
    """A file in the store. `created` is False if another writer had put it before."""

    path: str
    size_bytes: int
    sha256: str
    created: bool = True


class Store(ABC):
    """The store of one dataset. Paths are relative, with forward slashes. Instances can be pickled."""

    uri: str

    @abstractmethod
    def check(self) -> None:
        """Raise OutputError, naming store and cause, if it cannot be written. Leaves nothing behind."""

    @abstractmethod
    def remember_job(self, path: str) -> None:
        """Remember the record of the job that has begun here, for `check_shared` of copies of this store."""

    @abstractmethod
    def check_shared(self) -> None:
        """Raise OutputError if this node sees another directory than the one with the remembered job."""

    @abstractmethod
    def put_many(self, files: Iterable[tuple[str, bytes]]) -> list[Stored]:
        """Put each (path, data) unless the file exists; returns what is stored now, in the same order.

        Of several writers of one path exactly one wins, and all get the winner's size and hash.
        OutputError if the store cannot be written; no partial file is left under any of the paths.
        """

    def put_once(self, path: str, data: bytes) -> Stored:
        """`put_many` of one file."""
        return self.put_many([(path, data)])[0]

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Replace a file atomically: a reader sees the old file or the new one."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the file exists."""

    @abstractmethod
    def list_files(self, folder: str = "") -> list[str]:
        """Sorted paths of all files below a folder, empty if it does not exist. Reads no file."""

    @abstractmethod
    def versions(self, path: str = "") -> dict[str, str]:
        """Of a file, or of all files below a folder: a text that differs where the content does. Reads no file."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open a file for reading, seekable. FileNotFoundError if it does not exist."""

    def read(self, path: str) -> bytes:
        """The whole file."""
        with self.open(path) as file:
            return file.read()

    def presign(self, path: str, seconds: int) -> str:
        """An address from which anyone can read the file for this long. InputError if there is no server."""
        raise InputError(f"presigned addresses: expected an s3:// place, got {self.uri}")

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, and folders that become empty. No error if it does not exist."""

    @abstractmethod
    def clean(self, closing: bool = False) -> None:
        """Remove what killed writers left behind, once it is too old to have a living writer.

        When `closing`, every shard is committed, so unfinished writes are useless.
        """
