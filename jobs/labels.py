"""Label rows: which images a job makes, from class names and counts or from a file (`jobs.label_file`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jobs.row_digest import update_columns, update_schema
from tandem.errors import LabelError
from workers.layout import MAX_ROWS
from workers.shards import ShardPlan, ShardRows

ROWS_AT_ONCE = 65_536  # hashed together; another number would be another digest


@dataclass(frozen=True)
class LabelRows:
    """All rows of a job: position in the job is the image's index. Some bytes a row, and the carried columns."""

    label: np.ndarray  # int32 [n]
    extra: pa.Table | None = None  # carried columns, one row for each row of the label file
    file_row: np.ndarray | None = None  # int32 [n], ascending: the row of `extra` for each image; None: its own
    settings: pa.Table | None = None  # as the label file has them, row for row as `extra`; gaps: the job's own
    row_settings: tuple[str, ...] = ()  # the columns of `extra` that are settings, gaps filled

    def __len__(self) -> int:
        return len(self.label)

    @property
    def digest(self) -> str:
        """Hex sha256 of labels and carried columns: part of the job's identity."""
        digest = hashlib.sha256(np.ascontiguousarray(self.label, dtype="<i4").data)
        if self.extra is not None:
            update_schema(digest, self.extra.schema)
            for start in range(0, len(self), ROWS_AT_ONCE):
                update_columns(digest, self.carried(range(start, min(start + ROWS_AT_ONCE, len(self)))).values())
        return digest.hexdigest()

    def carried(self, rows: range) -> dict[str, pa.Array]:
        """The carried columns of some images."""
        if self.extra is None or not rows:
            return {}
        if self.file_row is None:
            part = self.extra.slice(rows.start, len(rows))
        else:  # a slice first: to take from a table of many chunks would copy all of it
            chosen = self.file_row[rows.start : rows.stop]
            part = self.extra.slice(chosen[0], chosen[-1] - chosen[0] + 1).take(pa.array(chosen - chosen[0]))
        return {name: part[name].combine_chunks() for name in part.column_names}

    def shard(self, plan: ShardPlan, shard: int) -> ShardRows:
        """The rows of one shard."""
        rows = plan.indices(shard)
        return ShardRows(
            shard=shard,
            index=np.arange(rows.start, rows.stop, dtype=np.int64),
            label=self.label[rows.start : rows.stop],
            extra=self.carried(rows),
        )


def choose_classes(text: str, class_names: Sequence[str]) -> list[int]:
    """Labels of 'all' or of a comma list of names, numbers and ranges. Raises LabelError naming the wrong part."""
    if text.strip() == "all":
        return list(range(len(class_names)))
    chosen: dict[int, None] = {}
    for part in (p.strip() for p in text.split(",")):
        if (label := label_of(part, class_names)) is not None:
            chosen[label] = None
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
    """Rows that go round the classes: so many of each, or so many in all. Raises LabelError for too many."""
    total = len(labels) * per_class if per_class else images or 0
    if total > MAX_ROWS:
        flag, most = ("--per-class", MAX_ROWS // len(labels)) if per_class else ("--images", MAX_ROWS)
        raise LabelError(f"{flag}: expected at most {most} for {len(labels)} classes, got {per_class or images}")
    rounds = -(-total // len(labels))
    return LabelRows(np.tile(np.asarray(labels, dtype=np.int32), rounds)[:total])


def label_of(name: str, class_names: Sequence[str]) -> int | None:
    """The label of a class name; of one that stands twice, the first. None for a name of no class."""
    return class_names.index(name) if name in class_names else None


def named_labels(names: Sequence[str | None], class_names: Sequence[str], where: str, done: int) -> Iterator[int]:
    """Labels of the class names of a file's rows, after `done` other rows. Raises LabelError naming the row."""
    known: dict[str | None, int] = {}
    for i, name in enumerate(names):
        if name not in known:
            label = None if name is None else label_of(name, class_names)
            if label is None:
                at = f"{where}, row {done + i + 1}"
                raise LabelError(f"{at}: unknown class name {name!r}", near(str(name), class_names))
            known[name] = label
        yield known[name]


def check_label(label: int, class_names: Sequence[str], where: str) -> int:
    if not 0 <= label < len(class_names):
        raise LabelError(f"{where}: expected labels 0 to {len(class_names) - 1}, got {label}")
    return label


def near(name: str, class_names: Sequence[str]) -> str:
    """A hint with the names most like the given one."""
    import difflib

    close = difflib.get_close_matches(name, class_names, n=3, cutoff=0.5) or list(class_names[:12])
    return f"did you mean {', '.join(close)}?" if len(close) <= 3 else f"classes are {', '.join(close)}"
