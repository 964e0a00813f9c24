"""Reads the blocks of a source one ahead, and decodes their pictures by all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.image_folder import decode_image
from tandem_workers.pictures.picture_block import PictureBlock, PictureSource

PICTURES_AT_ONCE = 64  # decoded by threads before the first of them is used
COUNTS_AT_ONCE = 16  # to count the pictures of a tar is some requests to S3
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What `read` returns for each item, in order. The next item is read while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[Result] | None = None
        for item in items:
            following = pool.submit(read, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def decode_by_threads(block: PictureBlock) -> Iterator[NDArray[np.uint8]]:
    """Like `PictureBlock.decoded`, by all cores, with at most `PICTURES_AT_ONCE` decoded pictures in memory."""
    if block.encoded is None:
        yield from block.decoded()
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(block), PICTURES_AT_ONCE):
            part = slice(start, start + PICTURES_AT_ONCE)
            yield from pool.map(decode_image, block.encoded[part], block.names[part])


def count_pictures(source: PictureSource) -> list[int]:
    """The number of pictures in each block. InputError where there is none in all."""
    with ThreadPoolExecutor(COUNTS_AT_ONCE) as pool:
        counts = list(pool.map(source.count, range(source.num_blocks)))
    if not sum(counts):
        raise InputError(f"{source.place}: expected pictures, got none")
    return counts


def check_count(source: PictureSource, block: PictureBlock, expected: int) -> None:
    """InputError unless a block has as many pictures as were counted."""
    if len(block) != expected:
        got = f"{expected} pictures in block {block.block}, got {len(block)}"
        raise InputError(f"{source.place} has changed: expected {got}", "export it when nothing writes to it")
