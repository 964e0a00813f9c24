"""Pictures of a dataset that `tandem generate`, `refine` or `export` wrote, found by its manifest."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tandem.errors import InputError, JobError
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.identity import EXPORT, Identity
from tandem_workers.dataset.job_record import is_taken, read_job
from tandem_workers.dataset.manifest import READS_AT_ONCE, Manifest, check_complete
from tandem_workers.dataset.shard_reader import naming_damage, read_checked, read_images_of, read_rows
from tandem_workers.dataset.success_file import read_success
from tandem_workers.dataset.verify import plan_of
from tandem_workers.pictures.own_columns import INDEX, column_types, read_columns
from tandem_workers.pictures.picture_block import PictureBlock
from tandem_workers.storage import layout
from tandem_workers.storage.s3_parallel import in_parallel
from tandem_workers.storage.store import Store, Stored

ENTRIES_AT_ONCE = 256  # an entry of an image folder names thousands of files


class Row(NamedTuple):
    """A picture: the path of its file, its index in the dataset, its label, the image file."""

    path: str
    number: int
    label: int
    image: bytes


class FileRows(NamedTuple):
    """What one file holds: pictures, other columns of rows if they are wanted, and names of those left out."""

    rows: list[Row]
    columns: pa.Table | None = None
    lost: Sequence[str] = ()


@dataclass(frozen=True)
class OwnDataset:
    """A complete dataset; a block is a shard. Entries are read again with their shards, as they name every file.

    `record`: identity and info of its job. `with_columns`: whether blocks have the other columns of the rows.
    """

    place: str
    store: Store
    epoch: int
    shards: tuple[int, ...]
    rows: tuple[int, ...]  # of each shard
    class_names: tuple[str, ...] | None
    identity: dict[str, Any]
    record: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    with_columns: bool = False
    kind: str = "dataset of Tandem"
    is_checked: bool = True

    @property
    def num_blocks(self) -> int:
        return len(self.shards)

    def count(self, block: int) -> int:
        return self.rows[block]

    def read(self, block: int) -> PictureBlock:
        entry = self._entry(self.shards[block])
        files = [file for file in entry.files if self.with_columns or not file.path.startswith("rows/")]
        found = in_parallel(self._read_file, files, READS_AT_ONCE)
        rows = sorted((row for file in found for row in file.rows), key=lambda row: row.number)
        if len(rows) != entry.rows:
            raise InputError(f"shard {entry.shard} of {self.place}: expected {entry.rows} pictures, got {len(rows)}")
        index = np.array([row.number for row in rows], dtype=np.int64)
        return PictureBlock(
            block,
            index,
            np.array([row.label for row in rows], dtype=np.int32),
            tuple(f"{self.place}: {row.path}, index {row.number}" for row in rows),
            [row.image for row in rows],
            columns=self._columns(entry.shard, index, found),
            lost_columns=tuple(dict.fromkeys(name for file in found for name in file.lost)),
        )

    def _columns(self, shard: int, index: NDArray[np.int64], found: list[FileRows]) -> pa.Table | None:
        """The other columns, in the order of the index. None unless they were read. InputError if rows lack."""
        tables = [file.columns for file in found if file.columns is not None]
        if not tables:
            return None
        table = pa.concat_tables(tables).sort_by(INDEX)
        if table[INDEX].to_pylist() != index.tolist():
            raise InputError(f"shard {shard} of {self.place}: expected a row for each picture")
        return table.drop_columns([INDEX])

    def _entry(self, shard: int) -> ManifestEntry:
        with as_input():
            entry = Manifest(self.store, self.epoch).entry(shard)
        if entry is None:
            raise InputError(f"{self.place}: shard {shard} is gone", "another job may have replaced the dataset")
        return entry

    def _read_file(self, file: Stored) -> FileRows:
        with naming_damage(self.store, file.path, InputError):
            data = read_checked(self.store, file)
            pairs = zip(read_rows(file.path, data), read_images_of(file.path, data), strict=True)
            rows = [Row(file.path, number, label, image) for (number, label), image in pairs]
            if not self.with_columns:
                return FileRows(rows)
            return FileRows(rows, *read_columns(file.path, data, column_types(Identity(self.record["identity"]))))


@contextmanager
def as_input() -> Iterator[None]:
    """Context manager: a JobError becomes an InputError, since the dataset is an input here."""
    try:
        yield
    except JobError as error:
        raise InputError(str(error), error.hint) from error


def holds_job(store: Store) -> bool:
    """Whether a job of Tandem has begun here."""
    return store.exists(layout.JOB) or is_taken(store, 0)


def open_own_dataset(place: str, store: Store) -> OwnDataset:
    """The dataset in a store, from its records alone.

    Raises:
        InputError: it is not complete, or holds drafts; records are damaged.
        OutputError: it has no record of its job.
    """
    plan = plan_of(store)  # it says where there is no record
    job = read_job(store)
    if Identity(job["identity"]).kind == "drafts":
        raise InputError(f"{place}: expected a dataset of images, got drafts", "tandem refine makes images of them")
    manifest = Manifest(store, job["epoch"])
    closing = read_success(store)
    failed = closing["failed_shards"] if closing else set()
    committed = manifest.committed(range(plan.num_shards), failed)
    try:
        check_complete(plan.num_shards, committed, failed)
    except JobError as error:
        raise InputError(f"{place} is not complete: {error}", "run the command that makes it again") from None
    if closing is None or closing["epoch"] != job["epoch"]:
        raise InputError(f"{place} is not complete: it has no _SUCCESS", "run the command that makes it again")
    digest, shards, rows, first = hashlib.sha256(), list[int](), list[int](), dict[int, int]()
    for entry in entries_of(manifest, sorted(committed)):
        shards.append(entry.shard)
        rows.append(entry.rows)
        for file in entry.files:
            digest.update(f"{file.path} {file.sha256}\n".encode())
        for label in entry.labels:
            first.setdefault(label, entry.shard)
    identity = {"kind": OwnDataset.kind, "pictures": sum(rows), "shards_sha256": digest.hexdigest()}
    known = job["info"].get("class_names")
    if Identity(job["identity"]).kind == EXPORT and known is None:
        names = None
    else:
        names = tuple(map(str, known)) if isinstance(known, list) else names_in_rows(manifest, first)
    notes = (f"{place}: shards {sorted(failed)} could not be made and are missing",) if failed else ()
    return OwnDataset(place, store, job["epoch"], tuple(shards), tuple(rows), names, identity, job, notes)


def entries_of(manifest: Manifest, shards: list[int]) -> Iterator[ManifestEntry]:
    """Entries in order, some at a time."""
    for start in range(0, len(shards), ENTRIES_AT_ONCE):
        with as_input():
            yield from manifest.entries(shards[start : start + ENTRIES_AT_ONCE])


def names_in_rows(manifest: Manifest, first: Mapping[int, int]) -> tuple[str, ...] | None:
    """Class names from the rows, for datasets of versions that did not keep them in job.json.

    `first`: for each label a shard that has it. Labels without rows get their number as name.
    """
    names: dict[int, str] = {}
    for shard in sorted(set(first.values())):
        entry = manifest.entry(shard)
        for file in entry.files if entry else ():
            if not file.path.startswith("images/"):
                with naming_damage(manifest.store, file.path, InputError):
                    names |= class_names_of(file.path, read_checked(manifest.store, file))
    return tuple(names.get(label, str(label)) for label in range(max(first, default=-1) + 1)) or None


def class_names_of(path: str, data: bytes) -> dict[int, str]:
    """The class names by label in one file of a dataset that has columns."""
    if path.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            files = (tar.extractfile(member) for member in tar if member.name.endswith(".json"))
            rows = [json.loads(file.read()) for file in files if file]
    else:
        rows = pq.read_table(io.BytesIO(data), columns=["label", "class_name"]).to_pylist()
    return {int(row["label"]): str(row["class_name"]) for row in rows}
