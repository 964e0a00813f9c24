"""Shares, means and differences of sets of n images, each with its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Z95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(hits_n: Tensor) -> Estimate:
    """Share of true values, with Wilson's interval. bool [n]."""
    return share_of(int(hits_n.sum()), len(hits_n))


def share_of(hits: int, n: int) -> Estimate:
    """Share of `hits` in n, with Wilson's interval."""
    p = hits / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    # Where none or all are hits, rounding alone would lead beyond 0 or 1
    return Estimate(p, max(centre - half, 0.0), min(centre + half, 1.0))


def paired_difference(ours_n: Tensor, theirs_n: Tensor) -> Estimate:
    """Mean of ours - theirs over images made with the same seeds, normal interval of the paired differences."""
    return mean_of(ours_n.double() - theirs_n.double())


def mean_of(values_n: Tensor) -> Estimate:
    """Mean of a number for each image, with its normal interval. float [n], two or more."""
    mean, half = values_n.double().mean().item(), Z95 * values_n.double().std().item() / math.sqrt(len(values_n))
    return Estimate(mean, mean - half, mean + half)


def nearest(ours_nD: Tensor, theirs_mD: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ours, root-mean-square distance to and index of the nearest of theirs: float [n], int64 [n]."""
    distance_nm = torch.cdist(ours_nD.float(), theirs_mD.float()) / math.sqrt(ours_nD.shape[1])
    best = distance_nm.min(dim=1)
    return best.values, best.indices
