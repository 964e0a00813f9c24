"""Intervals of repeated runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tandem.metrics import Estimate


def median_of(values: Sequence[float]) -> Estimate:
    """The median of repeated runs, and their range.

    The range holds the median of all runs with probability 1 - 2^(1 - n), whatever their distribution: 0.97 for six.
    """
    return Estimate(statistics.median(values), min(values), max(values))
