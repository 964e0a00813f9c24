"""Places that keep a dataset. What is put is never overwritten, and is there whole or not at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from tandem.errors import InputError

TEMPORARY = ".tmp"
# A writer keeps its temporary file for the seconds that one write takes. Age is the only safe sign of a dead
# writer: process ids say nothing across containers and nodes that share a directory.
TEMPORARY_LIFE_S = 3600.0


@dataclass(frozen=True)
class Stored:
    """A file as it stands in the store. `created` is False where somebody else had put it before."""

    path: str
    size_bytes: int
    sha256: str
    created: bool = True


class Store(ABC):
    """A place for one dataset. Paths are relative, with forward slashes. Instances can be pickled."""

    uri: str

    @abstractmethod
    def check(self) -> None:
        """Raise OutputError, naming place and cause, if nothing can be written here. Leaves nothing behind."""

    @abstractmethod
    def remember_job(self, path: str) -> None:
        """Note which job has begun here, by its record, for `check_shared` of copies of this store."""

    @abstractmethod
    def check_shared(self) -> None:
        """Raise OutputError where this node sees another place than the one where the job began, if that was noted."""

    @abstractmethod
    def put_many(self, files: Iterable[tuple[str, bytes]]) -> list[Stored]:
        """Put each (path, data) unless there is a file already; tell what is there now, in the same order.

        Of several writers of one path exactly one wins, and all get the winner's size and hash.
        OutputError when the place cannot be written; no partial file is left under any of the paths.
        """

    def put_once(self, path: str, data: bytes) -> Stored:
        """`put_many` of one file."""
        return self.put_many([(path, data)])[0]

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Put over whatever is there, in one step: a reader sees the old file or the new one."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether a file stands there."""

    @abstractmethod
    def list_files(self, folder: str = "") -> list[str]:
        """Sorted paths of all files below a folder, none where the folder is missing. Reads no file."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """The file for reading, able to seek. FileNotFoundError if there is none."""

    def read(self, path: str) -> bytes:
        """The whole file."""
        with self.open(path) as file:
            return file.read()

    def presign(self, path: str, seconds: int) -> str:
        """An address from which anyone may read the file for so long. InputError where there is no server."""
        raise InputError(f"presigned addresses: expected an s3:// place, got {self.uri}")

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, and the folders that become empty by it. No error if it is gone already."""

    @abstractmethod
    def clean(self, closing: bool = False) -> None:
        """Remove what killed writers left behind, once it is old enough to have no living writer.

        When `closing`, every shard is committed: what writers are still about is of no use.
        """
