"""Kernel distance, KID on Inception features (Binkowski et al., 2018): unbiased squared MMD of a cubic kernel.

Own, ten lines: torchmetrics keeps all features in memory and draws subsets from a global generator, so two datasets
cannot be compared on the same ones. Tests compare it with torchmetrics on equal subsets.

Shapes: n images, F features, S subsets of m images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem_jobs.evaluation.bootstrap import ROUNDS, Resampled, draws
from tandem_jobs.evaluation.feature_arrays import Rows, check_finite, check_rows, check_same_features

SUBSETS = 100
SUBSET_SIZE = 1000


@dataclass(frozen=True)
class KernelDistance:
    """Values of the subsets. The first `disjoint` of them share no image, so they are independent."""

    values: NDArray[np.float64]  # [S]
    size: int
    disjoint: int

    @property
    def std(self) -> float:
        """Standard deviation over subsets, which the field gives beside the mean. It is no error of the mean."""
        return float(self.values.std())

    def resampled(self, rounds: int = ROUNDS, seed: int = 0) -> Resampled:
        """Mean over subsets, with the spread by resampling the disjoint ones."""
        counts = draws(self.disjoint, rounds, seed)
        return Resampled(
            float(self.values.mean()), counts @ self.values[: self.disjoint] / self.disjoint, self.disjoint
        )


def kernel_distance(
    ours: Rows, reference: Rows, size: int | None = None, subsets: int = SUBSETS, seed: int = 0
) -> KernelDistance:
    """Unbiased squared MMD of `subsets` pairs of subsets; it can be below 0.

    `size` is 1,000 by default, but a tenth of the smaller set at most, so that ten subsets or more are disjoint and
    give an interval; the expected value does not depend on it. Datasets with equally many images, sorted by index, are
    measured on the same subsets. Raises InputError with fewer than 4 images or a size beyond a set.
    """
    check_rows(ours, "the dataset", minimum=4)
    check_rows(reference, "the reference", minimum=4)
    check_same_features(ours.shape[1], reference.shape[1])
    fewest = min(ours.shape[0], reference.shape[0])
    size = max(2, min(SUBSET_SIZE, fewest // 10)) if size is None else size
    if not 2 <= size <= fewest or subsets < 1:
        raise InputError(f"expected one subset or more of 2 to {fewest} images, got {subsets} of {size}")
    pairs = zip(
        subset_rows(ours.shape[0], size, subsets, seed),
        subset_rows(reference.shape[0], size, subsets, seed + 1),
        strict=True,
    )
    values = [mmd(_subset(ours, left), _subset(reference, right)) for left, right in pairs]
    return KernelDistance(np.array(values), size, min(subsets, fewest // size))


def subset_rows(n: int, size: int, subsets: int, seed: int) -> NDArray[np.int64]:
    """Rows of each subset: int64 [S, m]. Permutations are cut into subsets, so those of the first share no row."""
    rng, each = np.random.default_rng(seed), n // size
    permutations = [rng.permutation(n)[: each * size].reshape(each, size) for _ in range(math.ceil(subsets / each))]
    return np.concatenate(permutations)[:subsets]


def _subset(features: Rows, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    subset_mF = np.asarray(features[np.sort(rows)], dtype=np.float64)
    check_finite(subset_mF, "features")
    return subset_mF


def mmd(ours_mF: NDArray[np.float64], reference_mF: NDArray[np.float64]) -> float:
    """Unbiased squared MMD of two sets of m images under the kernel (x y / F + 1)^3."""
    m, num_features = ours_mF.shape

    def kernel(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
        return (left @ right.T / num_features + 1) ** 3

    ours_mm, reference_mm = kernel(ours_mF, ours_mF), kernel(reference_mF, reference_mF)
    same = sum(float(k.sum() - np.trace(k)) for k in (ours_mm, reference_mm)) / (m * (m - 1))
    return same - 2 * float(kernel(ours_mF, reference_mF).mean())
