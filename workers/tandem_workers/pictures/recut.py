"""Cuts the pictures of a source into the shards of a dataset, numbered anew, without holding more than it must."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.image_folder import decode_image
from tandem.images import codec_of, encode_plain
from tandem.user_files import shown
from tandem_workers.dataset.columns import as_array
from tandem_workers.dataset.shards import EncodedShard, ShardPlan
from tandem_workers.dataset.token_columns import TOKENS
from tandem_workers.pictures.own_dataset import OwnDataset
from tandem_workers.pictures.picture_block import NO_LABEL, PictureBlock, PictureSource
from tandem_workers.pictures.read_ahead import check_count, read_ahead


@dataclass(frozen=True)
class Rows:
    """Pictures as image files, their labels, int32 [n], and their other columns."""

    label: NDArray[np.int32]
    images: list[bytes]
    columns: pa.Table | None

    def cut(self, start: int, stop: int) -> Rows:
        columns = None if self.columns is None else self.columns.slice(start, stop - start)
        return Rows(self.label[start:stop], self.images[start:stop], columns)


@dataclass(frozen=True)
class Recut:
    """The pictures of a source as rows of another dataset.

    Image files that every dataset can hold (PNG, JPEG, WebP) keep their bytes; other files and arrays become PNG. Files
    of a source without hashes are decoded once, so that no broken one gets into the dataset.

    Attributes:
        counts: pictures of each block.
        schema: of the other columns, which are those of the first block.
    """

    source: PictureSource
    counts: Sequence[int]
    schema: pa.Schema | None = None

    def shards(self, plan: ShardPlan, done: Collection[int]) -> Iterator[EncodedShard]:
        """The shards of a plan that are not done, in order. Blocks that they do not need are not read.

        InputError for a picture that is broken or has no label, or if the source has changed.
        """
        ends = np.cumsum(self.counts).tolist()
        wanted = {
            block: [shard for shard in shards_of(plan, end - count, end) if shard not in done]
            for block, (count, end) in enumerate(zip(self.counts, ends, strict=True))
        }
        parts: list[Rows] = []  # of the shard that goes on in the next block
        began = time.perf_counter()
        blocks = [block for block, shards in wanted.items() if shards]
        for block, rows in zip(blocks, read_ahead(self.read, blocks), strict=True):
            start = ends[block] - self.counts[block]
            for shard in wanted[block]:
                indices = plan.indices(shard)
                parts.append(rows.cut(max(indices.start - start, 0), min(indices.stop, ends[block]) - start))
                if indices.stop <= ends[block]:
                    yield self.shard(shard, indices, parts, {"read": time.perf_counter() - began})
                    parts, began = [], time.perf_counter()

    def read(self, block: int) -> Rows:
        """A block of the source. InputError."""
        found = self.source.read(block)
        check_count(self.source, found, self.counts[block])
        self.check_labels(found)
        columns = found.columns
        if columns is not None and self.schema is not None:
            try:
                columns = columns.select(self.schema.names).cast(self.schema)
            except (pa.ArrowException, KeyError, ValueError) as error:
                raise InputError(f"{self.source.place}: expected one type a column: {shown(error)}") from None
        return Rows(found.label, image_files(found, self.source.is_checked), columns)

    def check_labels(self, block: PictureBlock) -> None:
        """InputError for the first picture without a label, or with one beyond the class names."""
        names = self.source.class_names
        known = 2**31 if names is None else len(names)
        for at in np.flatnonzero((block.label == NO_LABEL) | (block.label >= known))[:1].tolist():
            got = "none" if block.label[at] == NO_LABEL else block.label[at]
            hint = "--to npz takes pictures without labels" if block.label[at] == NO_LABEL else None
            expected = (
                "a label" if names is None else f"a label from 0 to {known - 1}, as there are {known} class names"
            )
            raise InputError(f"{block.names[at]}: expected {expected}, got {got}", hint)

    def shard(self, shard: int, indices: range, parts: list[Rows], seconds: Mapping[str, float]) -> EncodedShard:
        tables = [part.columns for part in parts if part.columns is not None]
        columns = pa.concat_tables(tables) if tables else pa.table({})
        extra = {name: columns[name] for name in columns.column_names if name != TOKENS}
        return EncodedShard(
            shard=shard,
            index=np.array(indices, dtype=np.int64),
            label=np.concatenate([part.label for part in parts]),
            tokens=as_array(columns[TOKENS]) if TOKENS in columns.column_names else None,
            extra={name: column.combine_chunks() for name, column in extra.items()},
            seconds=seconds,
            images=[image for part in parts for image in part.images],
        )


def open_recut(source: PictureSource, counts: Sequence[int]) -> tuple[Recut, PictureBlock]:
    """The rows of a source, and its first block that has pictures."""
    if isinstance(source, OwnDataset):
        source = replace(source, with_columns=True)
    first = source.read(next(block for block, count in enumerate(counts) if count))
    return Recut(source, counts, None if first.columns is None else first.columns.schema), first


def shards_of(plan: ShardPlan, start: int, stop: int) -> range:
    """Shards with rows from `start` up to `stop`."""
    return range(start // plan.shard_size, -(-stop // plan.shard_size)) if stop > start else range(0)


def image_files(block: PictureBlock, is_checked: bool) -> list[bytes]:
    """The pictures of a block as files that every dataset can hold. InputError names a broken one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        if block.pixels is not None:
            return list(pool.map(encode_plain, block.pixels))
        assert block.encoded is not None
        convert: Callable[[bytes, str], bytes] = partial(image_file, is_checked=is_checked)
        return list(pool.map(convert, block.encoded, block.names))


def image_file(data: bytes, name: str, is_checked: bool) -> bytes:
    """An image file as it is, or as PNG if it is of a kind that datasets do not hold. InputError if it is broken."""
    if is_checked:
        return data
    pixels = decode_image(data, name)
    return data if codec_of(data) else encode_plain(pixels)
