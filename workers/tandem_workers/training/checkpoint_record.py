"""Which checkpoints of a training run exist: a checkpoint does once its record is put, after all of its files.

OUT/checkpoints/00000250/record.json            step, numbers of the state, and path, size and SHA-256 of each file
OUT/checkpoints/00000250/1f6a.../*.safetensors  files of the workers, in a folder of the attempt that wrote them
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_workers.dataset.seal import DamagedError, open_sealed, seal
from tandem_workers.storage.store import Store, Stored

FOLDER = "checkpoints"
SUFFIX = ".safetensors"
READ_BYTES = 1 << 22
KEYS = ("step", "numbers", "files")
_PATH = re.compile(rf"{FOLDER}/(?P<step>\d{{8,18}})/(?:record\.json|[0-9a-f]{{16}}/[\w-]+\{SUFFIX})")


def record_path(step: int) -> str:
    return f"{FOLDER}/{step:08d}/record.json"


def file_path(step: int, attempt: str, name: str) -> str:
    return f"{FOLDER}/{step:08d}/{attempt}/{name}"


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint that exists. numbers: of `LoopState.numbers`."""

    step: int
    numbers: dict[str, Any]
    files: tuple[Stored, ...]

    def to_json(self) -> bytes:
        files = [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in self.files]
        return seal({"step": self.step, "numbers": self.numbers, "files": files})

    @classmethod
    def read(cls, store: Store, step: int) -> CheckpointRecord:
        """DamagedError for other content, also for files that are not of this checkpoint. FileNotFoundError."""
        values = open_sealed(store.read(record_path(step)), KEYS)
        try:
            files = tuple(Stored(f["path"], int(f["size_bytes"]), str(f["sha256"]), False) for f in values["files"])
            record = cls(int(values["step"]), dict(values["numbers"]), files)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"is not the record of a checkpoint: {error!r}") from None
        if record.step != step or not all(_step_of(file.path) == step for file in files):
            raise DamagedError("is the record of another checkpoint")
        return record

    def fetch(self, store: Store, folder: Path) -> None:
        """Copy the files into a folder. DamagedError for one that is missing or has other content."""
        for file in self.files:
            digest, size = hashlib.sha256(), 0
            try:
                with store.open(file.path) as source, (folder / file.path.rsplit("/", 1)[1]).open("wb") as target:
                    while chunk := source.read(READ_BYTES):
                        digest.update(chunk)
                        size += len(chunk)
                        target.write(chunk)
            except FileNotFoundError:
                raise DamagedError(f"is damaged: {file.path} is missing") from None
            if (size, digest.hexdigest()) != (file.size_bytes, file.sha256):
                raise DamagedError(f"is damaged: expected {file.path} of {file.size_bytes:,} bytes and its SHA-256")


def committed_steps(store: Store) -> list[int]:
    """Steps of the checkpoints that exist, newest first."""
    return sorted((step for path in store.list_files(FOLDER) if (step := _committed(path)) is not None), reverse=True)


def prune(store: Store, keep: int) -> None:
    """Remove all but the newest checkpoints, and files of attempts that were not completed."""
    paths = [path for path in store.list_files(FOLDER) if _PATH.fullmatch(path)]
    kept = {path for step in committed_steps(store)[:keep] for path in _files_of(store, step)}
    records = [path for path in paths if _committed(path) is not None and path not in kept]
    for path in (*records, *(path for path in paths if path not in records and path not in kept)):
        store.remove(path)


def _files_of(store: Store, step: int) -> set[str]:
    """Paths of a checkpoint, its record included; of a damaged record nothing else is known."""
    try:
        files = CheckpointRecord.read(store, step).files
    except DamagedError:
        files = ()
    return {record_path(step), *(file.path for file in files)}


def _committed(path: str) -> int | None:
    """The step of a record's path, None for any other path."""
    step = _step_of(path)
    return step if step is not None and path == record_path(step) else None


def _step_of(path: str) -> int | None:
    match = _PATH.fullmatch(path)
    return int(match["step"]) if match else None
