"""Arrays of features: checks, groups of images for intervals, a sample of fixed size, rows kept in a file.

Shapes: n images, F features. Rows of two arrays belong together where they have the same image index.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError

SAMPLE = 50_000


class Rows(Protocol):
    """Features float [n, F] that are read by slices or by row numbers: an array, or `StoredRows`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class StoredRows:
    """Features in a `.npy` file. Only the rows that are asked for come into memory, and they stay no longer."""

    def __init__(self, path: Path):
        """Raises InputError when the file is not a 2-D array of numbers."""
        self.path = path
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"expected features as a .npy file, {path} cannot be read: {error}") from error
        self.shape: tuple[int, ...] = array.shape
        check_rows(self, str(path))

    def __getitem__(self, rows: Any, /) -> NDArray[np.floating]:
        # Mapped anew each time: pages of a mapping that stays open would count as memory of the process
        return np.array(np.load(self.path, mmap_mode="r", allow_pickle=False)[rows])


def check_rows(features: Rows, what: str, minimum: int = 1) -> None:
    """InputError unless `features` is [n, F] with at least `minimum` images and one feature."""
    if len(features.shape) != 2 or features.shape[1] < 1:
        raise InputError(f"expected features [images, features] of {what}, got the shape {list(features.shape)}")
    if features.shape[0] < minimum:
        raise InputError(f"expected at least {minimum} images in {what}, got {features.shape[0]}")


def check_same_features(ours: int, reference: int) -> None:
    """InputError unless both sides have as many features."""
    if ours != reference:
        raise InputError(
            f"expected as many features as the reference has, {reference}, got {ours}",
            "Features of two extractors are not comparable.",
        )


def check_finite(values: NDArray[np.floating], what: str) -> None:
    """InputError when a row of [n, ...] holds NaN or infinity."""
    wrong = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).sum())
    if wrong:
        raise InputError(f"expected finite {what}, got NaN or infinity for {wrong} of {len(values)} images")


def mixed(index: NDArray[np.integer], seed: int) -> NDArray[np.uint64]:
    """A pseudorandom number for each image index (SplitMix64): the same wherever and in whatever order it is asked."""
    with np.errstate(over="ignore"):
        z = index.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def group_of(index: NDArray[np.integer], num_groups: int, seed: int = 0) -> NDArray[np.int64]:
    """Group int64 [n] of each image, 0 to G - 1; sizes differ by one at most. With fewer images than groups, G = n.

    Groups are drawn from the indices and not cut along shards: a shard can hold one class, and intervals over such
    blocks would be those of a draw of classes. Datasets with the same indices have the same groups.
    """
    if num_groups < 1 or len(index) == 0:
        raise InputError(f"expected one image and one group or more, got {len(index)} images and {num_groups} groups")
    groups = np.empty(len(index), dtype=np.int64)
    order = np.lexsort((index, mixed(index, seed)))
    groups[order] = np.arange(len(index)) * min(num_groups, len(index)) // len(index)
    return groups


def in_sample(index: NDArray[np.integer], size: int = SAMPLE, seed: int = 0) -> NDArray[np.bool_]:
    """Which images are in the sample of `size`: bool [n], true for all where there are no more. By index, not order."""
    if size < 1:
        raise InputError(f"expected a sample of at least one image, got {size}")
    chosen = np.zeros(len(index), dtype=bool)
    chosen[np.lexsort((index, mixed(index, seed)))[:size]] = True
    return chosen


def row_blocks(num_rows: int, size: int) -> list[slice]:
    """Slices of at most `size` rows that cover all."""
    return [slice(i * size, min((i + 1) * size, num_rows)) for i in range(math.ceil(num_rows / size))]
