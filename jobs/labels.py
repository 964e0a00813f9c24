"""Label rows: from class names and counts, or from a file. Checked as a whole before anything starts."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from tandem.errors import LabelError
from workers.fetch import fetch, is_remote
from workers.shards import ShardPlan, ShardRows

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json"}
LABEL, CLASS_NAME, COUNT = "label", "class_name", "count"


@dataclass(frozen=True)
class LabelRows:
    """All rows of a job: position in the job is the image's index. Four bytes a row, and the carried columns."""

    label: np.ndarray  # int32 [n]
    extra: pa.Table | None = None  # n rows

    def __len__(self) -> int:
        return len(self.label)

    @property
    def digest(self) -> str:
        """Hex sha256 of labels and carried columns: part of the job's identity."""
        digest = hashlib.sha256(self.label.astype("<i4").tobytes())
        if self.extra is not None:
            for name in self.extra.column_names:
                digest.update(f"\n{name} {self.extra[name].type}\n".encode())
                for value in self.extra[name]:
                    digest.update(repr(value.as_py()).encode())
        return digest.hexdigest()

    def shard(self, plan: ShardPlan, shard: int) -> ShardRows:
        """The rows of one shard."""
        rows = plan.indices(shard)
        extra = {}
        if self.extra is not None:
            part = self.extra.slice(rows.start, len(rows))
            extra = {name: part[name].combine_chunks() for name in part.column_names}
        return ShardRows(
            shard=shard,
            index=np.arange(rows.start, rows.stop, dtype=np.int64),
            label=self.label[rows.start : rows.stop],
            extra=extra,
        )


def choose_classes(text: str, class_names: Sequence[str]) -> list[int]:
    """Labels of 'all' or of a comma list of names, numbers and ranges. Raises LabelError naming the wrong part."""
    if text.strip() == "all":
        return list(range(len(class_names)))
    chosen: dict[int, None] = {}
    for part in (p.strip() for p in text.split(",")):
        if part in class_names:
            chosen[list(class_names).index(part)] = None
        elif match := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                raise LabelError(f"--classes: expected a range that ascends, got {part}")
            check_label(last, class_names, "--classes")
            chosen.update(dict.fromkeys(range(first, last + 1)))
        else:
            raise LabelError(f"--classes: expected 'all', class names or labels, got {part!r}", near(part, class_names))
    return list(chosen)


def rows_of_classes(labels: Sequence[int], per_class: int | None, images: int | None) -> LabelRows:
    """Rows that go round the classes: so many of each, or so many in all."""
    total = len(labels) * per_class if per_class else images or 0
    return LabelRows(np.resize(np.asarray(labels, dtype=np.int32), total))


def read_label_file(address: str, class_names: Sequence[str]) -> LabelRows:
    """Rows of a parquet, CSV or JSON-lines file, batch by batch. Raises LabelError naming file, row and cause."""
    path = fetch(address) if is_remote(address) else Path(address).expanduser()
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise LabelError(f"--labels: expected a file that ends in {', '.join(FORMATS)}, got {address}")
    if not path.is_file():
        raise LabelError(f"--labels: no such file: {address}")
    labels, tables, row = [], [], 0
    try:
        for batch in pads.dataset(path, format=kind).to_batches():
            label, extra = read_batch(batch, class_names, f"--labels: {address}", row)
            labels.append(label)
            tables.append(extra)
            row += batch.num_rows
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise LabelError(f"--labels: cannot read {address}: {' '.join(str(error).split())}") from error
    if sum(map(len, labels)) == 0:
        raise LabelError(f"--labels: expected one row or more, got none in {address}")
    carried = pa.Table.from_batches(tables) if tables and tables[0].num_columns else None
    return LabelRows(np.concatenate(labels), carried)


def read_batch(
    batch: pa.RecordBatch, class_names: Sequence[str], where: str, first_row: int
) -> tuple[np.ndarray, pa.RecordBatch]:
    """(labels int32, carried columns) of one batch, rows repeated by their count."""
    columns = batch.schema.names
    if LABEL in columns:
        label = np.fromiter(checked_labels(batch, class_names, where, first_row), dtype=np.int32)
    elif CLASS_NAME in columns:
        label = np.fromiter(named_labels(batch, class_names, where, first_row), dtype=np.int32)
    else:
        raise LabelError(f"{where}: expected a column '{LABEL}' or '{CLASS_NAME}', got {', '.join(columns)}")
    extra = batch.select([name for name in columns if name not in (LABEL, CLASS_NAME, COUNT)])
    if COUNT not in columns:
        return label, extra
    counts = [checked_whole(value, COUNT, where, first_row + i) for i, value in enumerate(batch[COUNT].to_pylist())]
    repeated = np.repeat(np.arange(len(label)), counts)
    return label[repeated], extra.take(pa.array(repeated))


def checked_labels(batch: pa.RecordBatch, class_names: Sequence[str], where: str, first_row: int) -> Iterator[int]:
    for i, value in enumerate(batch[LABEL].to_pylist()):
        label = checked_whole(value, LABEL, where, first_row + i)
        yield check_label(label, class_names, f"{where}, row {first_row + i + 1}")


def named_labels(batch: pa.RecordBatch, class_names: Sequence[str], where: str, first_row: int) -> Iterator[int]:
    label_of = {name: label for label, name in enumerate(class_names)}
    for i, name in enumerate(batch[CLASS_NAME].to_pylist()):
        if name not in label_of:
            row = first_row + i + 1
            raise LabelError(f"{where}, row {row}: unknown class name {name!r}", near(str(name), class_names))
        yield label_of[name]


def checked_whole(value: object, column: str, where: str, row: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise LabelError(f"{where}, row {row + 1}: {column}: expected a whole number >= 0, got {value!r}")
    return value


def check_label(label: int, class_names: Sequence[str], where: str) -> int:
    if not 0 <= label < len(class_names):
        raise LabelError(f"{where}: expected labels 0 to {len(class_names) - 1}, got {label}")
    return label


def near(name: str, class_names: Sequence[str]) -> str:
    """A hint with the names most like the given one."""
    import difflib

    close = difflib.get_close_matches(name, class_names, n=3, cutoff=0.5) or list(class_names[:12])
    return f"did you mean {', '.join(close)}?" if len(close) <= 3 else f"classes are {', '.join(close)}"
