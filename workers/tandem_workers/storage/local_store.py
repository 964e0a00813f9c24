"""A dataset in a directory: files are written under temporary names, and linked to their own names when complete."""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tandem.errors import OutputError
from tandem.user_files import cause_of, shown
from tandem_workers.storage.store import TEMPORARY, TEMPORARY_LIFE_S, Store, Stored

NOT_LISTED = (TEMPORARY, "lost+found")  # lost+found exists at the root of ext4 file systems, readable only by root
PUT_ATTEMPTS = 20  # if other processes keep removing the file


class LocalStore(Store):
    """A directory on a file system with hard links, shared by all nodes that write to it.

    A file is written under `.tmp/`, flushed to disk and linked to its name; linking fails if the name exists.
    """

    def __init__(self, directory: str) -> None:
        # absolute: workers run in other directories than the command line
        self.root = Path(os.path.abspath(os.path.expanduser(directory)))
        self.uri = str(self.root)
        self.job: tuple[str, bytes] | None = None  # its record
        try:
            if not stat.S_ISDIR(os.stat(self.root).st_mode):
                raise OutputError(f"out: expected a directory, {self.uri} is a file")
        except (FileNotFoundError, NotADirectoryError):  # `check` reports these better
            pass
        except (OSError, ValueError) as error:
            raise OutputError(f"out: cannot use {shown(self.uri)}: {cause_of(error)}") from error

    def check(self) -> None:
        there = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        with _writing(there), tempfile.TemporaryFile(dir=there):
            pass

    def remember_job(self, path: str) -> None:
        try:
            self.job = path, self.read(path)
        except FileNotFoundError:
            raise OutputError(f"{path} in {self.uri} is missing", "tandem verify --repair restores it") from None

    def check_shared(self) -> None:
        if self.job is None:
            return
        name, record = self.job
        path = self.root / name
        if not path.exists() or path.read_bytes() != record:
            found = f"another {name}" if path.exists() else f"no {name}"
            raise OutputError(
                f"out: expected a directory that all nodes share, {platform.node()} has {found} in {self.root}",
                "use s3://bucket/prefix, or a file system that every node mounts",
            )

    def put_many(self, files: Iterable[tuple[str, bytes]]) -> list[Stored]:
        stored = []
        folders: set[Path] = set()
        for path, data in files:
            with _writing(self.root / path):
                stored.append(self._put(path, data))
            folders.add((self.root / path).parent)
        for folder in folders:  # names too have to survive a power cut before anyone relies on them
            with _writing(folder):
                _sync_folder(folder)
        return stored

    def replace(self, path: str, data: bytes) -> None:
        with _writing(self.root / path):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            with self._temporary(data) as temporary:
                os.replace(temporary, self.root / path)
            _sync_folder((self.root / path).parent)

    def exists(self, path: str) -> bool:
        try:
            return (self.root / path).is_file()
        except OSError as error:
            raise OutputError(f"cannot read {self.root / path}: {error.strerror or error}") from error

    def list_files(self, folder: str = "") -> list[str]:
        found = []
        for parent, folders, names in os.walk(self.root / folder, onerror=_unless_missing):
            if Path(parent) == self.root:
                folders[:] = [name for name in folders if name not in NOT_LISTED]
            found += [Path(parent, name).relative_to(self.root).as_posix() for name in names]
        return sorted(found)

    def versions(self, path: str = "") -> dict[str, str]:
        paths = [path] if self.exists(path) else self.list_files(path)
        try:
            found = {each: (self.root / each).stat() for each in paths}
        except OSError as error:
            raise OutputError(f"cannot read {error.filename}: {error.strerror}") from error
        return {each: f"{status.st_size} bytes, {status.st_mtime_ns} ns" for each, status in found.items()}

    def open(self, path: str) -> BinaryIO:
        try:
            return (self.root / path).open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OutputError(f"cannot read {self.root / path}: {error.strerror or error}") from error

    def remove(self, path: str) -> None:
        target = self.root / path
        with _writing(target):
            target.unlink(missing_ok=True)
        for parent in list(target.relative_to(self.root).parents)[:-1]:
            try:
                (self.root / parent).rmdir()
            except OSError:  # not empty, or gone
                return

    def clean(self, closing: bool = False) -> None:
        folder = self.root / TEMPORARY
        with suppress(FileNotFoundError):  # never made, or another process has cleaned
            for name in os.listdir(folder):
                with suppress(OSError):  # its writer has just finished, or it is another user's
                    if time.time() - (folder / name).stat().st_mtime > TEMPORARY_LIFE_S:
                        (folder / name).unlink()
        with suppress(OSError):  # in use
            folder.rmdir()

    def _put(self, path: str, data: bytes) -> Stored:
        target = self.root / path
        for _ in range(PUT_ATTEMPTS):
            with suppress(FileNotFoundError):  # another process has removed the file, or the folder that was empty
                if target.exists():
                    return _measure(path, target)
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._temporary(data) as temporary, suppress(FileExistsError):
                    os.link(temporary, target)
                    return Stored(path, len(data), hashlib.sha256(data).hexdigest())
        raise gone(f"{self.uri}/{path}")

    @contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        temporary = self.root / TEMPORARY / uuid.uuid4().hex
        try:
            with _create(temporary) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def gone(name: str) -> OutputError:
    """The error of a put whose name was always taken when putting, and always free when reading."""
    return OutputError(f"{name} was there a moment ago and is gone", hint="run the same command again")


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise OutputError(f"cannot list {error.filename}: {error.strerror}") from error


def _create(path: Path) -> BinaryIO:
    while True:
        with suppress(FileExistsError):  # exist_ok would check the folder again, when it may be gone
            path.parent.mkdir(parents=True)
        try:
            return path.open("xb")
        except FileNotFoundError:  # another process's clean() took the empty folder in between
            continue


def _measure(path: str, file: Path) -> Stored:
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return Stored(path, size, digest.hexdigest(), created=False)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # another process has removed what was put, and the empty folder
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "the file system needs room, write permission and hard links"
        raise OutputError(f"cannot write {target}: {error.strerror or error}", hint=hint) from error
