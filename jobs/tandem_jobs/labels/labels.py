"""Label rows: which images a job makes, from class names and counts or from a file (`labels.label_file`)."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tandem.class_names import ClassNames
from tandem.config import SamplingConfig
from tandem.errors import LabelError
from tandem_jobs.labels.row_digest import update_columns, update_schema
from tandem_workers.dataset.row_settings import GUIDANCE_SETTINGS, SEED_INDEX
from tandem_workers.dataset.shards import ShardPlan, ShardRows
from tandem_workers.storage.layout import MAX_ROWS

DIGEST_ROWS = 4096  # rows hashed at a time, at most 2 GiB a column; another number gives another digest


@dataclass(frozen=True)
class LabelRows:
    """All images of a job, in index order. Takes a few bytes an image: columns are held once for each row of the label
    file, however many images the row asks for."""

    label: np.ndarray  # int32 [n]
    extra: pa.Table | None = None  # columns of the dataset, one row for each row of the label file
    file_row: np.ndarray | None = None  # int32 [n], ascending: each image's row in `extra`; None: row i is image i
    unfilled_settings: pa.Table | None = None  # settings columns, same rows as `extra`; null: the job's own value
    row_settings: tuple[str, ...] = ()  # columns of `extra` that are settings; they have no nulls

    def __len__(self) -> int:
        return len(self.label)

    @property
    def draft_steps(self) -> tuple[int, ...]:
        """All values of N in the rows; empty if all rows have the job's."""
        return self.values_of("draft_steps")

    def guidances(self, sampling: SamplingConfig) -> list[SamplingConfig]:
        """The settings that differ in guidance, where the job has `sampling`."""
        names = [name for name in GUIDANCE_SETTINGS if name in self.row_settings]
        if self.extra is None or not names:
            return [sampling]
        different = self.extra.select(names).group_by(names).aggregate([])
        return [replace(sampling, **row) for row in different.to_pylist()]

    def values_of(self, setting: str) -> tuple[Any, ...]:
        """All values of a setting that is one number; empty if all rows have the job's."""
        if self.extra is None or setting not in self.row_settings:
            return ()
        return tuple(np.unique(self.extra[setting].to_numpy()).tolist())

    @property
    def digest(self) -> str:
        """Hex sha256 of labels and carried columns: part of the job's identity."""
        digest = hashlib.sha256(np.ascontiguousarray(self.label, dtype="<i4").data)
        if self.extra is not None:
            update_schema(digest, self.extra.schema)
            for start in range(0, len(self), DIGEST_ROWS):
                update_columns(digest, self.carried(range(start, min(start + DIGEST_ROWS, len(self)))).values())
        return digest.hexdigest()

    def carried(self, rows: range) -> dict[str, pa.Array]:
        """The columns of these images. `seed_index` in `extra` belongs to the first image of each row."""
        if self.extra is None or not rows:
            return {}
        if self.file_row is None:
            part = self.extra.slice(rows.start, len(rows))
        else:  # slice first: `take` on a table of many chunks copies all of it
            chosen = self.file_row[rows.start : rows.stop]
            part = self.extra.slice(chosen[0], chosen[-1] - chosen[0] + 1).take(pa.array(chosen - chosen[0]))
        columns = {name: part[name].combine_chunks() for name in part.column_names}
        if self.file_row is not None and SEED_INDEX in columns:
            nth_of_row = np.arange(rows.start, rows.stop) - np.searchsorted(self.file_row, chosen)
            columns[SEED_INDEX] = pc.add(columns[SEED_INDEX], pa.array(nth_of_row))
        return columns

    def shard(self, plan: ShardPlan, shard: int) -> ShardRows:
        """The rows of one shard."""
        rows = plan.indices(shard)
        return ShardRows(
            shard=shard,
            index=np.arange(rows.start, rows.stop, dtype=np.int64),
            label=self.label[rows.start : rows.stop],
            extra=self.carried(rows),
        )


@dataclass(frozen=True)
class ReadLabels:
    """The first stage of jobs with labels: a shard's number becomes its rows, from the one copy in the object store."""

    name = "read"

    rows: ray.ObjectRef
    plan: ShardPlan

    def load(self) -> ReadLabels:
        return self

    def __call__(self, shard: ShardRows) -> ShardRows:
        table: LabelRows = ray.get(self.rows)
        return table.shard(self.plan, shard.shard)


def choose_classes(text: str, classes: ClassNames, flag: str = "--classes") -> list[int]:
    """Labels of 'all', or of names, numbers and ranges separated by commas. Raises LabelError naming the wrong part.

    A name with commas is quoted, as in CSV: 'face,"dark glasses, shades"'.
    """
    if text.strip() == "all":
        return list(range(len(classes)))
    chosen: dict[int, None] = {}
    for part in split_list(text, flag):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part)
        if match and not classes.named(part):
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                raise LabelError(f"{flag}: expected an ascending range, got {part}")
            check_label(last, classes, flag)
            chosen.update(dict.fromkeys(range(first, last + 1)))
        else:
            chosen[find_class(part, classes, flag)] = None
    exact_matches = classes.named(text) if "," in text and '"' not in text else ()
    if len(exact_matches) == 1 and list(chosen) != list(exact_matches):
        raise LabelError(
            f"{flag}: expected one meaning, got {text!r}, which names {classes.describe(exact_matches[0])}, "
            f"and a list of {' and '.join(map(classes.describe, chosen))}",
            f"""for the former: '"{text}"'; for the latter: {",".join(map(str, chosen))}""",
        )
    return list(chosen)


def split_list(text: str, flag: str = "--classes") -> list[str]:
    """The parts of a list separated by commas; any may be quoted. Raises LabelError."""
    normalised = re.sub(r'"\s+(?=,|$)', '"', text)  # CSV allows no space after a quoted cell
    try:
        (parts,) = csv.reader([normalised], skipinitialspace=True, strict=True) if normalised.strip() else [[""]]
    except (csv.Error, ValueError) as error:
        raise LabelError(f"{flag}: expected a comma list, names with commas in quotes, got {text!r}") from error
    return [part.strip() for part in parts]


def find_class(text: str, classes: ClassNames, location: str) -> int:
    """The label of a class. LabelErrors begin with `location`, where the text was given."""
    try:
        return classes.find(text)
    except LabelError as error:
        raise LabelError(f"{location}: {error}", error.hint) from None


def rows_of_classes(labels: Sequence[int], per_class: int | None, images: int | None) -> LabelRows:
    """Rows that cycle through the classes: `per_class` of each, or `images` in all. LabelError for too many."""
    total = len(labels) * per_class if per_class else images or 0
    if total > MAX_ROWS:
        flag, most = ("--per-class", MAX_ROWS // len(labels)) if per_class else ("--images", MAX_ROWS)
        raise LabelError(f"{flag}: expected at most {most} for {len(labels)} classes, got {per_class or images}")
    rounds = -(-total // len(labels))
    return LabelRows(np.tile(np.asarray(labels, dtype=np.int32), rounds)[:total])


def named_labels(names: Sequence[str | None], classes: ClassNames, location: str, rows_before: int) -> Iterator[int]:
    """Labels of the class names of a file's rows. `rows_before` rows came before. Raises LabelError naming the row."""
    known: dict[str, int] = {}  # names repeat
    for row, name in enumerate(names, rows_before + 1):
        text = "" if name is None else str(name)
        if text not in known:
            known[text] = find_class(text, classes, f"{location}, row {row}: class_name")
        yield known[text]


def check_label(label: int, classes: ClassNames, location: str) -> int:
    if not 0 <= label < len(classes):
        raise LabelError(f"{location}: expected labels 0 to {len(classes) - 1}, got {label}")
    return label
