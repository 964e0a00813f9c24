"""Inception Score (Salimans et al., 2016): exp of the mean KL divergence of class probabilities to their mean.

Own, since two sums a split are all it needs, and torchmetrics keeps the probabilities of all images and splits them by
a global generator. Tests compare both.

Shapes: B images, C classes, S splits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem_jobs.evaluation.bootstrap import ROUNDS, Resampled, draws
from tandem_jobs.evaluation.feature_arrays import check_finite, check_rows

SPLITS = 10


class ProbabilitySums:
    """n, sum of p and sum of p log p for each split. They add up over blocks."""

    def __init__(self, num_classes: int, splits: int = SPLITS):
        self.n = np.zeros(splits, dtype=np.int64)
        self.total = np.zeros((splits, num_classes))
        self.negentropy = np.zeros(splits)

    def add(self, probabilities: NDArray[np.floating], split: NDArray[np.integer]) -> ProbabilitySums:
        """Add a block [B, C] whose splits are `split` [B], of `group_of`. Raises InputError unless rows sum to 1."""
        check_rows(probabilities, "a block of probabilities")
        check_finite(probabilities, "probabilities")
        p_BC = probabilities.astype(np.float64)
        if p_BC.shape[1] != self.total.shape[1]:
            raise InputError(f"expected probabilities of {self.total.shape[1]} classes, got {p_BC.shape[1]}")
        if (p_BC < 0).any() or (np.abs(p_BC.sum(axis=1) - 1) > 1e-2).any():
            raise InputError("expected probabilities that sum to 1 for each image", "Logits need a softmax before.")
        p_BC /= p_BC.sum(axis=1, keepdims=True)
        np.add.at(self.n, split, 1)
        np.add.at(self.total, split, p_BC)
        np.add.at(self.negentropy, split, _p_log_p(p_BC).sum(axis=1))
        return self

    def __iadd__(self, other: ProbabilitySums) -> ProbabilitySums:
        """The sums of both, of equal splits and classes."""
        self.n += other.n
        self.total += other.total
        self.negentropy += other.negentropy
        return self

    def scores(self) -> NDArray[np.float64]:
        """The score of each split: float64 [S], each from 1 to the number of classes."""
        if (self.n == 0).any():
            raise InputError(f"expected images in each of {len(self.n)} splits, got {int(self.n.sum())} images in all")
        mean_SC = self.total / self.n[:, None]
        return np.exp(np.maximum(self.negentropy / self.n - _p_log_p(mean_SC).sum(axis=1), 0))


def inception_score(sums: ProbabilitySums, rounds: int = ROUNDS, seed: int = 0) -> Resampled:
    """Mean over splits, with the spread by resampling them. It is lower with fewer images a split: 5,000 are usual."""
    scores, splits = sums.scores(), len(sums.n)
    return Resampled(float(scores.mean()), draws(splits, rounds, seed) @ scores / splits, splits)


def _p_log_p(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return p * np.log(np.where(p > 0, p, 1))
