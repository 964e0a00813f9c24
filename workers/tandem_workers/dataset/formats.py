"""A shard as files: webdataset, parquet or an image folder. Pure functions: equal rows give equal bytes.

All have the same columns: the image, index, label, class_name, seed, draft_steps, tokens if requested, and the
columns carried along from the label file. Exported pictures have class_name if their classes have names, and of the
columns after it those that they had before. In parquet the image and the label are Hugging Face's `Image` and
`ClassLabel`; in a tar the columns are the `.json` of a sample; an image folder has tables for them.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tandem.errors import InputError
from tandem.images import EXTENSIONS, Codec
from tandem_workers.dataset.columns import as_lists, check_carried, python_values
from tandem_workers.dataset.shards import EncodedShard
from tandem_workers.storage import layout

FormatName = Literal["webdataset", "parquet", "folder"]
ROWS_PER_GROUP = 100  # Hugging Face's advice for images: a reader loads one group at a time


@dataclass(frozen=True)
class DatasetFormat:
    """The format of a dataset.

    Attributes:
        class_names: the name of every label, in label order; None where labels are numbers alone.
        seed, draft_steps: of all rows of a job; None where the rows have columns for them, or no such values.
    """

    name: FormatName
    codec: Codec
    class_names: tuple[str, ...] | None
    seed: int | None = None
    draft_steps: int | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(FormatName):
            raise InputError(f"format: expected one of {', '.join(get_args(FormatName))}, got {self.name!r}")

    @property
    def extension(self) -> str:
        """Extension of the image files, without the dot."""
        return EXTENSIONS[self.codec]

    def name_of(self, label: int) -> str:
        """The name of a class, or its number."""
        return str(label) if self.class_names is None else self.class_names[label]

    def files(self, shard: EncodedShard, tag: str = "") -> list[tuple[str, bytes]]:
        """(path in the dataset, bytes) of every file of a shard; `tag` is part of each name."""
        return shard_files(shard, self, tag)

    def check_extra(self, table: pa.Table) -> None:
        """InputError for carried columns that the format cannot hold. Call it before the job starts."""
        check_carried(table, self.name)


def shard_files(shard: EncodedShard, fmt: DatasetFormat, tag: str = "") -> list[tuple[str, bytes]]:
    """(path in the dataset, bytes) of every file of a shard.

    webdataset: one tar; parquet: one table; folder: every image and one table of the other columns.
    """
    if fmt.name == "webdataset":
        return [(layout.shard_path(shard.shard, "tar", tag), _tar(shard, fmt))]
    table = _columns(shard, fmt)
    if fmt.name == "parquet":
        names = [_image_name(index, fmt) for index in shard.index.tolist()]
        files = pa.StructArray.from_arrays(
            [pa.array(shard.images, pa.binary()), pa.array(names, pa.string())], ["bytes", "path"]
        )
        return [(layout.shard_path(shard.shard, "parquet", tag), _parquet(table.add_column(0, "image", files), fmt))]
    places = list(zip(shard.label.tolist(), shard.index.tolist(), strict=True))
    paths = [layout.image_path(label, index, fmt.extension, tag) for label, index in places]
    table = table.add_column(0, "file_name", pa.array([path.removeprefix("images/") for path in paths]))
    return [*zip(paths, shard.images, strict=True), (layout.rows_path(shard.shard, tag), _parquet(table, fmt))]


def merge_tables(tables: Sequence[bytes], fmt: DatasetFormat) -> bytes:
    """The tables of a folder's shards as one, which Hugging Face's imagefolder reads as metadata."""
    return _parquet(pa.concat_tables([pq.read_table(io.BytesIO(t)) for t in tables], promote_options="default"), fmt)


def read_images(
    open_file: Callable[[str], BinaryIO], path: str, fmt: DatasetFormat, wanted: Mapping[int, int]
) -> Iterator[tuple[int, bytes]]:
    """(label, image bytes) of the first wanted[label] images of each label in one file of a dataset.

    `open_file` opens a path for reading; if the file can seek, only these images are read.
    """
    left = Counter({label: n for label, n in wanted.items() if n > 0})
    for label, fetch in _samples(open_file, path, fmt):
        if left[label] > 0:
            yield label, fetch()
            left[label] -= 1
        if not +left:
            return


def unique_class_names(class_names: Sequence[str]) -> list[str]:
    """Unique names, as ClassLabel requires: duplicates (ImageNet's "crane") get their label appended, again if the
    result is the name of another class."""
    names = list(class_names)
    while twice := {name for name, count in Counter(names).items() if count > 1}:
        names = [f"{name} ({label})" if name in twice else name for label, name in enumerate(names)]
    return names


def _columns(shard: EncodedShard, fmt: DatasetFormat) -> pa.Table:
    n, labels = len(shard), shard.label.tolist()
    columns: dict[str, pa.Array] = {
        "index": pa.array(shard.index, pa.int64()),
        "label": pa.array(labels, pa.int64()),  # the type of ClassLabel
    }
    if fmt.class_names is not None:
        columns["class_name"] = pa.array([fmt.class_names[label] for label in labels], pa.string())
    if fmt.seed is not None:
        columns["seed"] = pa.array([fmt.seed] * n, pa.int64())
    if fmt.draft_steps is not None:
        columns["draft_steps"] = pa.array([fmt.draft_steps] * n, pa.int32())
    if shard.tokens is not None:
        columns["tokens"] = as_lists(shard.tokens)
    return pa.table({**columns, **shard.extra})


def _parquet(table: pa.Table, fmt: DatasetFormat) -> bytes:
    features: dict[str, Any] = {}
    if fmt.class_names is not None:
        features["label"] = {"_type": "ClassLabel", "names": unique_class_names(fmt.class_names)}
    if "image" in table.column_names:
        features["image"] = {"_type": "Image"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    out = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        out,
        row_group_size=ROWS_PER_GROUP if "image" in table.column_names else 100_000,
        compression="zstd",
        # useless for image bytes
        use_dictionary=[name for name in ("label", "class_name", "seed", "draft_steps") if name in table.column_names],
        version="2.6",
    )
    return out.getvalue()


def _image_name(index: int, fmt: DatasetFormat) -> str:
    return f"{index:09d}.{fmt.extension}"


def _tar(shard: EncodedShard, fmt: DatasetFormat) -> bytes:
    table = _columns(shard, fmt)
    names = [name for name in table.column_names if name != "tokens"]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(python_values(table[n]) for n in names), strict=True)]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, (row, image) in enumerate(zip(rows, shard.images, strict=True)):
            key = f"{row['index']:09d}"
            _add(tar, _image_name(row["index"], fmt), image)
            _add(tar, f"{key}.cls", str(row["label"]).encode())
            _add(tar, f"{key}.json", json.dumps(_plain(row), allow_nan=False).encode())
            if shard.tokens is not None:
                array = io.BytesIO()
                np.save(array, shard.tokens[i])
                _add(tar, f"{key}.tokens.npy", array.getvalue())
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, owner 0: bytes depend only on the rows
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _plain(value: Any) -> Any:
    """An Arrow value as JSON: dates in ISO 8601, decimals as text, NaN and infinities as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _samples(
    open_file: Callable[[str], BinaryIO], path: str, fmt: DatasetFormat
) -> Iterator[tuple[int, Callable[[], bytes]]]:
    """(label, function that reads the image) of every image in a file, in order."""
    if path.startswith("images/"):
        yield layout.image_label(path), lambda: _read(open_file(path))
    elif path.endswith(".tar"):
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            image = None
            for member in tar:
                if member.name.endswith(f".{fmt.extension}"):
                    image = member
                elif member.name.endswith(".cls"):
                    yield int(_extract(tar, member)), partial(_extract, tar, image)
    elif path.startswith("shards/"):
        with open_file(path) as file:
            table = pq.ParquetFile(file)
            for group in range(table.num_row_groups):
                for row, label in enumerate(table.read_row_group(group, ["label"])["label"].to_pylist()):
                    yield label, partial(_cell, table, group, row)


def _read(file: BinaryIO) -> bytes:
    with file:
        return file.read()


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes:
    file = tar.extractfile(member) if member else None
    assert file is not None, "a sample of ours has its image before its label"
    return file.read()


def _cell(table: pq.ParquetFile, group: int, row: int) -> bytes:
    return bytes(table.read_row_group(group, ["image"])["image"][row]["bytes"].as_py())
