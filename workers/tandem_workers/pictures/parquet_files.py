"""Pictures of parquet files with a column of image files, as Hugging Face writes them.

The image column is the one with Hugging Face's type `Image`, else `image`, else the only one that holds bytes. The
label is the column with the type `ClassLabel`, else `label`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from tandem.errors import InputError, TandemError
from tandem.user_files import shown
from tandem_workers.pictures.picture_block import ForeignFiles, PictureBlock, as_labels, identity_of
from tandem_workers.storage.s3_parallel import in_parallel
from tandem_workers.storage.store import Store

KIND = "parquet"
READS_AT_ONCE = 16


@dataclass(frozen=True)
class Columns:
    """Which columns are read."""

    image: str
    label: str | None


@dataclass(frozen=True)
class RowGroup:
    """A part of a file that is read at once."""

    path: str
    number: int
    rows: int
    first: int  # index of its first row


@dataclass(frozen=True, kw_only=True)
class ParquetFiles(ForeignFiles):
    """Files in the order of their names; a block is a row group, and the index counts all rows."""

    kind = KIND

    groups: tuple[RowGroup, ...]
    columns: Columns

    @property
    def num_blocks(self) -> int:
        return len(self.groups)

    def count(self, block: int) -> int:
        return self.groups[block].rows

    def read(self, block: int) -> PictureBlock:
        group, columns = self.groups[block], self.columns
        wanted = [columns.image, *([columns.label] if columns.label else [])]
        with opened(self.store, group.path) as file:
            table = file.read_row_group(group.number, wanted)
        index = np.arange(group.first, group.first + len(table), dtype=np.int64)
        names = tuple(f"{self.store.uri}/{group.path}, row {i} of row group {group.number}" for i in range(len(table)))
        values = table[columns.image].combine_chunks()
        images = (values.field("bytes") if pt.is_struct(values.type) else values).to_pylist()
        if None in images:
            raise InputError(f"{names[images.index(None)]}: expected an image file in {columns.image!r}, got none")
        labels = table[columns.label].to_pylist() if columns.label else [None] * len(table)
        if self.class_names:  # ClassLabel writes -1 for an unknown label
            labels = [None if label == -1 else label for label in labels]
        return PictureBlock(block, index, as_labels(labels, names), names, images)


def open_parquet_files(place: str, store: Store, versions: dict[str, str]) -> ParquetFiles:
    """The parquet files of a store, with their versions. Reads their footers. InputError without an image column."""

    def sizes(path: str) -> tuple[list[int], pa.Schema]:
        with opened(store, path) as file:
            groups = range(file.num_row_groups)
            return [file.metadata.row_group(group).num_rows for group in groups], file.schema_arrow

    paths = sorted(versions)
    found = in_parallel(sizes, paths, READS_AT_ONCE)
    groups, first = list[RowGroup](), 0
    columns, class_names = choose_columns(found[0][1], f"{store.uri}/{paths[0]}")
    for path, (rows, schema) in zip(paths, found, strict=True):
        for name in filter(None, (columns.image, columns.label)):
            if name not in schema.names:
                raise InputError(f"{store.uri}/{path}: expected a column {name!r}, as {paths[0]} has")
        for number, count in enumerate(rows):
            groups.append(RowGroup(path, number, count, first))
            first += count
    return ParquetFiles(
        place=place,
        store=store,
        groups=tuple(groups),
        columns=columns,
        class_names=class_names,
        identity=identity_of(KIND, versions),
    )


def choose_columns(schema: pa.Schema, name: str) -> tuple[Columns, tuple[str, ...] | None]:
    """The image and the label column, and names of the classes if they are known.

    InputError, with the columns there are, if there is no image column.
    """
    features = hugging_face_features(schema)
    typed = [column for column in schema.names if features.get(column, {}).get("_type") == "Image"]
    binary = [field.name for field in schema if holds_files(field.type)]
    image = next(iter(typed), "image" if "image" in binary else binary[0] if len(binary) == 1 else None)
    if image is None or image not in binary:
        there = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(f"{name}: expected a column 'image' of image files, got {shown(there)}")
    classes = [column for column in schema.names if features.get(column, {}).get("_type") == "ClassLabel"]
    label = next(iter(classes), "label" if "label" in schema.names else None)
    if label and not pt.is_integer(schema.field(label).type):
        raise InputError(f"{name}: expected whole numbers in column {label!r}, got {schema.field(label).type}")
    names = features[label].get("names") if classes and label else None
    return Columns(image, label), tuple(map(str, names)) if isinstance(names, list) else None


def holds_files(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, by themselves or as Hugging Face's `Image`."""
    if pt.is_struct(kind):
        return any(field.name == "bytes" and holds_files(field.type) for field in kind)
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind))


def hugging_face_features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face's types of the columns, by name; none where the file has no such metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


@contextmanager
def opened(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """Context manager: a parquet file for reading. InputError names it if it is damaged."""
    try:
        with store.open(path) as file:
            yield pq.ParquetFile(file)
    except TandemError:
        raise
    except FileNotFoundError:
        raise InputError(f"{store.uri}/{path} is gone, it was there a moment ago") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{store.uri}/{path}: not a whole parquet file: {shown(error)}") from None
