"""Distances against closed forms, intervals against simulation."""

import math

import pytest
import torch

from tandem.metrics import bootstrap, frechet_distance, nearest, paired_difference, share


def normal(n: int, mean: float, std: float, seed: int, features: int = 4) -> torch.Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed)) * std + mean


def test_frechet_distance_of_gaussians_has_its_closed_form():
    """d^2 = |m1 - m2|^2 + sum (s1 - s2)^2 for independent features."""
    ours, theirs = normal(200_000, 1.0, 2.0, 0), normal(200_000, 0.0, 1.0, 1)
    assert frechet_distance(ours, theirs) == pytest.approx(4 * 1.0 + 4 * 1.0, rel=0.02)
    assert frechet_distance(ours, ours) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(ours, theirs) == pytest.approx(frechet_distance(theirs, ours), rel=1e-9)


def test_frechet_distance_sees_correlation():
    x = normal(100_000, 0.0, 1.0, 0, features=1)
    together, apart = torch.cat([x, x], 1), normal(100_000, 0.0, 1.0, 1, features=2)
    # C1 = [[1, 1], [1, 1]], C2 = I: 4 - 2 tr(C1^(1/2)) = 4 - 2 sqrt(2)
    assert frechet_distance(together, apart) == pytest.approx(4 - 2 * math.sqrt(2), abs=0.05)


def test_wilson_covers_at_about_95_percent():
    generator, true = torch.Generator().manual_seed(0), 0.85
    estimates = [share(torch.rand(200, generator=generator) < true) for _ in range(400)]
    covered = sum(e.low <= true <= e.high for e in estimates) / len(estimates)
    assert 0.92 <= covered <= 0.98
    assert share(torch.ones(50, dtype=torch.bool)).low < 1


def test_paired_differences_are_tighter_than_unpaired_ones():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(2000, generator=generator) < 0.8
    worse = base & (torch.rand(2000, generator=generator) < 0.95)
    estimate = paired_difference(worse, base)
    assert estimate.low < estimate.value < estimate.high < 0
    assert estimate.high - estimate.low < 0.025
    same = paired_difference(base, base)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_bootstrap_gives_the_spread_of_a_mean():
    x = normal(1000, 3.0, 2.0, 0, features=1).flatten()
    estimate = bootstrap(lambda picks: x[picks].mean().item(), len(x), rounds=400, seed=0)
    assert estimate.value == pytest.approx(x.mean().item())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * 2 / math.sqrt(1000), rel=0.15)


def test_nearest_finds_the_nearest():
    theirs = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    distance, index = nearest(torch.tensor([[9.0, 1.0], [0.0, 0.0]]), theirs)
    assert index.tolist() == [1, 0]
    assert distance.tolist() == pytest.approx([1.0, 0.0])  # RMS over the two coordinates
