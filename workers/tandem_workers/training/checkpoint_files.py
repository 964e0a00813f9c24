"""Checkpoints of a training state, by torch.distributed.checkpoint, in a store.

Each worker writes its tensors as safetensors into a temporary folder, then puts the files. So a checkpoint holds no
pickle, and can be loaded by another number of workers, and with DDP as with FSDP.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter

from tandem.errors import OutputError
from tandem.training.parallel import Workers
from tandem.training.state import LoopState
from tandem_workers.dataset.seal import DamagedError
from tandem_workers.storage.store import Store, Stored
from tandem_workers.training.checkpoint_record import (
    CheckpointRecord,
    committed_steps,
    file_path,
    prune,
    record_path,
)

FILE_BYTES = 256 << 20  # about the size of a file: a store takes whole files from memory
PREFIX = "tandem-checkpoint-"


class CheckpointFiles:
    """The checkpoints of a run. Methods are called on every worker in the same order, and raise on all of them.

    Args:
        store: the place of the run.
        keep: how many checkpoints stay.
        say: takes a line for the user; called on the first worker.
    """

    def __init__(self, store: Store, workers: Workers, keep: int, say: Callable[[str], None]) -> None:
        self.store, self.workers, self.keep, self.say = store, workers, keep, say

    def save(self, state: LoopState) -> None:
        """Save a checkpoint, and remove the oldest. OutputError where it cannot be written: then none is added."""
        attempt = self.workers.share(secrets.token_hex(8))[0]
        with _staging() as folder:
            _write(state.tensors(), folder, self.workers.world)
            files = self.workers.together(lambda: self._put(folder, state.step, attempt))
        record = CheckpointRecord(state.step, state.numbers(), tuple(file for some in files for file in some))
        self.workers.by_first(lambda: self._commit(record))

    def load(self, state: LoopState) -> bool:
        """Load the newest whole checkpoint into the state; False if there is none. Damaged ones are removed."""
        for step in self.workers.by_first(lambda: committed_steps(self.store)):
            with self._fetched(step) as (record, folder):
                if record is not None:
                    self.workers.together(lambda: _read(state.tensors(), folder))
                    state.set_numbers(record.numbers)
                    break
        self.workers.by_first(lambda: prune(self.store, self.keep))
        return state.step > 0

    def _put(self, folder: Path, step: int, attempt: str) -> list[Stored]:
        paths = sorted(folder.iterdir())
        return [self.store.put_once(file_path(step, attempt, path.name), path.read_bytes()) for path in paths]

    def _commit(self, record: CheckpointRecord) -> None:
        data = record.to_json()
        stored = self.store.put_once(record_path(record.step), data)
        if not stored.created and self.store.read(stored.path) != data:
            raise OutputError(
                f"{self.store.uri}: another run has saved step {record.step} here meanwhile",
                "let one run at a time write to a place",
            )
        prune(self.store, self.keep)

    @contextmanager
    def _fetched(self, step: int) -> Iterator[tuple[CheckpointRecord | None, Path]]:
        """Context manager: a checkpoint's record (None if it is damaged) and a folder with its files, one a node."""
        with _staging() as folder:
            host = socket.gethostname()
            places = self.workers.share((host, str(folder)))
            mine = Path(next(place for name, place in places if name == host))
            leads = mine == folder or not mine.is_dir()  # hosts of one name need not be one machine
            mine = folder if leads else mine
            results = self.workers.together(lambda: self._fetch(step, mine, leads))
            damage = next((result for result in results if isinstance(result, str)), None)
            record = results[self.workers.rank]
            if damage is None and isinstance(record, CheckpointRecord):
                yield record, mine
            else:
                self.say(f"checkpoint of step {step} {damage}; going back to the one before")
                self.workers.by_first(lambda: self.store.remove(record_path(step)))
                yield None, mine

    def _fetch(self, step: int, folder: Path, leads: bool) -> CheckpointRecord | str:
        """The record, its files fetched where this worker does so for its node; or what is damaged."""
        try:
            record = CheckpointRecord.read(self.store, step)
            if leads:
                record.fetch(self.store, folder)
        except (DamagedError, FileNotFoundError) as error:
            return str(error) if isinstance(error, DamagedError) else "is damaged: its record is missing"
        except OSError as error:
            raise _cannot("read", folder, error) from error
        return record


def read_average(store: Store) -> tuple[int, dict[str, Tensor]]:
    """Step and averaged weights, whole, of the newest checkpoint that is whole. OutputError if there is none."""
    for step in committed_steps(store):
        with _staging() as folder:
            try:
                CheckpointRecord.read(store, step).fetch(store, folder)
            except DamagedError:
                continue
            metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
            tensors: dict[str, Tensor] = {
                name: torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
                for name, entry in metadata.items()
                if name.startswith("average/")
            }
            _read(tensors, folder)
            return step, {name.removeprefix("average/"): value for name, value in tensors.items()}
    raise OutputError(f"{store.uri} holds no checkpoint", "train first")


@contextmanager
def _staging() -> Iterator[Path]:
    """Context manager: an empty folder on this machine."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:
        raise _cannot("write", Path(tempfile.gettempdir()), error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(tensors: Mapping[str, Tensor], folder: Path, world: int) -> None:
    """Write this worker's share of the tensors. Collective."""
    writer = HuggingFaceStorageWriter(str(folder), _file_numbers(tensors, world), save_distributed=True)
    with _without_warnings():
        try:  # safetensors takes no strides but those of the shape
            dcp.save({name: value.contiguous() for name, value in tensors.items()}, storage_writer=writer)
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            raise _cannot("write", folder, cause) from error


def _file_numbers(tensors: Mapping[str, Tensor], world: int) -> dict[str, int]:
    """For each tensor a file, from 1: workers share each file's tensors, so it holds about FILE_BYTES a worker."""
    numbers: dict[str, int] = {}
    number, size = 1, 0
    for name, value in tensors.items():
        size += value.numel() * value.element_size()
        if size > FILE_BYTES * world and numbers:
            number, size = number + 1, 0
        numbers[name] = number
    return numbers


def _read(tensors: dict[str, Tensor], folder: Path) -> None:
    """Read into these tensors: this worker's parts alone, without asking the others."""
    with _without_warnings():
        try:
            dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        except (CheckpointException, RuntimeError, ValueError) as error:
            raise _cannot("read", folder, error) from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Context manager: torch warns where there is one process, which is nothing new here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _cannot(verb: str, folder: Path, error: BaseException) -> OutputError:
    cause = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
    return OutputError(f"cannot {verb} a checkpoint in {folder}: {cause}", "TMPDIR names another folder")
