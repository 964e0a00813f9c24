"""A store in memory whose operations a seeded scheduler lets through one at a time, late, twice, or never.

Every job runs in a greenlet. An operation hands control back to the scheduler before it takes effect, so that any other
job's operations can come between any two of it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from greenlet import greenlet

from tandem_workers.storage.store import Store, Stored


class Disk:
    """What has been put, under which names, and which changes a listing does not show yet."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.clock = 0
        self.unlisted: dict[str, tuple[bytes | None, int]] = {}  # what a listing still shows of a name, and until when
        self.listing_lag: Callable[[], int] = lambda: 0
        self.on_remove: Callable[[str], None] = lambda path: None

    def change(self, path: str, data: bytes | None) -> None:
        if self.files.get(path) is None or data is None:
            self.unlisted[path] = (self.files.get(path), self.clock + self.listing_lag())
        if data is None:
            if path in self.files:
                self.on_remove(path)
            self.files.pop(path, None)
        else:
            self.files[path] = data

    def names(self) -> Iterator[str]:
        """As a listing shows them."""
        for path in {*self.files, *self.unlisted}:
            before, until = self.unlisted.get(path, (None, 0))
            if (before if until > self.clock else self.files.get(path)) is not None:
                yield path


class MemoryStore(Store):
    """One place of a disk. Outside of a scheduler's greenlets it is an ordinary store."""

    def __init__(self, disk: Disk, place: str) -> None:
        self.disk, self.uri = disk, place

    def check(self) -> None:
        """It can be written."""

    def remember_job(self, path: str) -> None:
        """There is one disk."""

    def check_shared(self) -> None:
        """There is one disk."""

    def clean(self, closing: bool = False) -> None:
        """Nothing is half written."""

    def put_many(self, files: Iterable[tuple[str, bytes]]) -> list[Stored]:
        return [self._put(*file) for file in files]

    def replace(self, path: str, data: bytes) -> None:
        self._do("replace", path, lambda: self.disk.change(self._name(path), data), changes=True)

    def exists(self, path: str) -> bool:
        return bool(self._do("exists", path, lambda: self._name(path) in self.disk.files))

    def list_files(self, folder: str = "") -> list[str]:
        start, prefix = len(self.uri) + 1, self._name(f"{folder}/" if folder else "")
        return list(
            self._do("list", folder, lambda: sorted(p[start:] for p in self.disk.names() if p.startswith(prefix)))
        )

    def versions(self, path: str = "") -> dict[str, str]:
        paths = [path] if self.exists(path) else self.list_files(path)
        return {each: hashlib.sha256(self.read(each)).hexdigest() for each in paths}

    def open(self, path: str) -> BinaryIO:
        data = self._do("read", path, lambda: self.disk.files.get(self._name(path)))
        if data is None:
            raise FileNotFoundError(path)
        return io.BytesIO(data)

    def remove(self, path: str) -> None:
        self._do("remove", path, lambda: self.disk.change(self._name(path), None), changes=True)

    def _put(self, path: str, data: bytes) -> Stored:
        name = self._name(path)

        def effect() -> Stored:
            there = self.disk.files.get(name)
            if there is None:
                self.disk.change(name, data)
            found = data if there is None else there
            return Stored(path, len(found), hashlib.sha256(found).hexdigest(), there is None)

        stored: Stored = self._do("put", path, effect, changes=True)
        return stored

    def _name(self, path: str) -> str:
        return f"{self.uri}/{path}"

    def _do(self, verb: str, path: str, effect: Callable[[], Any], changes: bool = False) -> Any:
        scheduler = greenlet.getcurrent().parent
        if scheduler is None:
            return effect()
        while scheduler.switch((f"{verb} {self._name(path)}", effect if changes else None)) == "answer lost":
            effect()  # and the client asks again
        return effect()
