"""Precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020) from nearest neighbours.

Own, with the definitions of the package prdc, since that holds whole n x n matrices, 20 GB each at 50,000 images. Here
one block of distances is held at a time. Tests compare both.

An image has a ball that reaches to its k-th nearest neighbour in its own set, boundary excluded. Precision: share of
our images in a ball of the reference. Recall: share of the reference in a ball of ours. Density: balls of the
reference that an image of ours is in, over k. Coverage: share of the reference whose ball holds an image of ours.
Identical sets of distinct images have 1 of each. An image with k equals or more has an empty ball.

Shapes: n images of ours, m of the reference, F features, a and b rows of two blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem_jobs.evaluation.feature_arrays import Rows, check_finite, check_rows, check_same_features, row_blocks

NEAREST = 3
BLOCK = 2000  # images: 16 MB of distances
# Squared distances below this share of the squared norms are rounding: images that are equal
FLOOR = 1e-6


@dataclass(frozen=True)
class Neighbours:
    """Numbers for each image; their means are the metrics. Intervals over them hold the other set's balls fixed."""

    precise: NDArray[np.bool_]  # [n]: precision
    density: NDArray[np.float64]  # [n]
    recalled: NDArray[np.bool_]  # [m]: recall
    covered: NDArray[np.bool_]  # [m]: coverage


@dataclass(frozen=True)
class _Blocks:
    """Rows of features around a centre, in blocks: float32 [a, F] and their squared norms [a]."""

    features: Rows
    centre_F: NDArray[np.float64]
    size: int

    def __iter__(self) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32]]]:
        for rows in row_blocks(self.features.shape[0], self.size):
            block_aF = (self.features[rows] - self.centre_F).astype(np.float32)
            yield rows, block_aF, np.square(block_aF).sum(axis=1)


def neighbours(ours: Rows, reference: Rows, nearest: int = NEAREST, block: int = BLOCK) -> Neighbours:
    """Compare two sets of features. Raises InputError when a set has no more than `nearest` images, or the reference
    only equal ones. A dataset of equal images is measured: its balls are empty, its recall is 0.
    """
    if nearest < 1 or block < 1:
        raise InputError(f"expected one neighbour and one image a block or more, got {nearest} and {block}")
    check_rows(ours, "the dataset", minimum=nearest + 1)
    check_rows(reference, "the reference", minimum=nearest + 1)
    check_same_features(ours.shape[1], reference.shape[1])
    check_all_finite(ours, block)
    check_all_finite(reference, block)
    centre = mean_of(reference, block)
    ours_blocks, reference_blocks = _Blocks(ours, centre, block), _Blocks(reference, centre, block)
    reference_radii = _squared_radii(reference_blocks, nearest)
    if not reference_radii.any():
        raise InputError(
            f"expected a reference of distinct images, got {reference.shape[0]} images that have {nearest} equals each"
        )
    return _compare(ours_blocks, _squared_radii(ours_blocks, nearest), reference_blocks, reference_radii, nearest)


def check_all_finite(features: Rows, block: int) -> None:
    for rows in row_blocks(features.shape[0], block):
        check_finite(features[rows], "features")


def mean_of(features: Rows, block: int) -> NDArray[np.float64]:
    """Distances do not depend on the origin; around the mean, float32 keeps most digits of them."""
    sums = [features[rows].sum(axis=0, dtype=np.float64) for rows in row_blocks(features.shape[0], block)]
    return np.sum(sums, axis=0) / features.shape[0]


def _squared_distances(left_aF: NDArray, left_a: NDArray, right_bF: NDArray, right_b: NDArray) -> NDArray[np.float32]:
    """float32 [a, b]; equal images have exactly 0."""
    squared_ab = left_aF @ right_bF.T
    squared_ab *= -2
    scale_ab = left_a[:, None] + right_b
    squared_ab += scale_ab
    scale_ab *= FLOOR
    squared_ab[squared_ab < scale_ab] = 0
    return squared_ab


def _squared_radii(blocks: _Blocks, nearest: int) -> NDArray[np.float32]:
    """Squared distance of each image to its k-th nearest other one: float32 [n]."""
    radii = np.empty(blocks.features.shape[0], dtype=np.float32)
    for rows, left_aF, left_a in blocks:
        best_ak = np.full((len(left_aF), nearest), np.inf, dtype=np.float32)
        for others, right_bF, right_b in blocks:
            squared_ab = _squared_distances(left_aF, left_a, right_bF, right_b)
            if others == rows:
                np.fill_diagonal(squared_ab, np.inf)
            candidates = np.concatenate([best_ak, squared_ab], axis=1)
            candidates.partition(nearest - 1, axis=1)
            best_ak = candidates[:, :nearest].copy()
        radii[rows] = best_ak.max(axis=1)
    return radii


def _compare(
    ours: _Blocks, ours_radii: NDArray, reference: _Blocks, reference_radii: NDArray, nearest: int
) -> Neighbours:
    inside = np.zeros(len(ours_radii), dtype=np.int64)
    recalled = np.zeros(len(reference_radii), dtype=bool)
    closest = np.full(len(reference_radii), np.inf, dtype=np.float32)
    for rows, left_aF, left_a in reference:
        for others, right_bF, right_b in ours:
            squared_ab = _squared_distances(left_aF, left_a, right_bF, right_b)
            inside[others] += np.count_nonzero(squared_ab < reference_radii[rows, None], axis=0)
            recalled[rows] |= (squared_ab < ours_radii[others]).any(axis=1)
            closest[rows] = np.minimum(closest[rows], squared_ab.min(axis=1))
    return Neighbours(inside > 0, inside / nearest, recalled, closest < reference_radii)
