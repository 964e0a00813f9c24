"""Metrics of sets of images, each with its 95 % interval.

Shapes: n images, F features. Source of the Fréchet distance: Heusel et al., 2017 (FID), here on other features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
    n, p = len(hits_n), hits_n.double().mean().item()
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return Estimate(p, centre - half, centre + half)


def paired_difference(ours_n: Tensor, theirs_n: Tensor) -> Estimate:
    """Mean of ours - theirs over images made with the same seeds, normal interval of the paired differences."""
    difference_n = ours_n.double() - theirs_n.double()
    half = Z95 * difference_n.std().item() / math.sqrt(len(difference_n))
    mean = difference_n.mean().item()
    return Estimate(mean, mean - half, mean + half)


def frechet_distance(ours_nF: Tensor, theirs_nF: Tensor) -> float:
    """Fréchet distance of two sets of features, each taken as a Gaussian (float64 inside).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); the trace of the root is the sum of the roots of the eigenvalues.
    """
    ours_nF, theirs_nF = ours_nF.double(), theirs_nF.double()
    mean = (ours_nF.mean(0) - theirs_nF.mean(0)).square().sum()
    ours_FF, theirs_FF = torch.cov(ours_nF.T), torch.cov(theirs_nF.T)
    roots = torch.linalg.eigvals(ours_FF @ theirs_FF).real.clamp_min(0).sqrt().sum()
    return (mean + ours_FF.trace() + theirs_FF.trace() - 2 * roots).item()


def bootstrap(statistic: Callable[[Tensor], float], n: int, rounds: int, seed: int) -> Estimate:
    """A statistic of n images and its interval by resampling: `statistic` gets indices int64 [n].

    Statistics that compare settings use the same indices for all, which keeps the pairs. The spread of the resamples
    is laid around the value of the whole sample, since a Fréchet distance of a resample is biased upwards.
    """
    whole = statistic(torch.arange(n))
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(
        [statistic(torch.randint(n, (n,), generator=generator)) for _ in range(rounds)], dtype=torch.float64
    )
    half = Z95 * values.std().item()
    return Estimate(whole, whole - half, whole + half)


def nearest(ours_nD: Tensor, theirs_mD: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ours, root-mean-square distance to and index of the nearest of theirs: float [n], int64 [n]."""
    distance_nm = torch.cdist(ours_nD.float(), theirs_mD.float()) / math.sqrt(ours_nD.shape[1])
    best = distance_nm.min(dim=1)
    return best.values, best.indices
