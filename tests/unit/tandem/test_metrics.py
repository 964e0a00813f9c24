"""Intervals against simulation, the nearest picture."""

import pytest
import torch

from tandem.metrics import nearest, paired_difference, share, share_of


def test_an_interval_of_shares_stays_between_0_and_1():
    for n in range(1, 300):
        none, every = share_of(0, n), share_of(n, n)
        assert none.low >= 0.0 and every.high <= 1.0
        assert none.high == pytest.approx(1 - every.low)


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


def test_nearest_finds_the_nearest():
    theirs = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    distance, index = nearest(torch.tensor([[9.0, 1.0], [0.0, 0.0]]), theirs)
    assert index.tolist() == [1, 0]
    assert distance.tolist() == pytest.approx([1.0, 0.0])  # RMS over the two coordinates
