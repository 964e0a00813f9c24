"""95 % intervals by bootstrap over groups of images whose sums are kept.

A resample is a count for each group, how often it was drawn. Metrics that are measured with the same seed, groups and
rounds use the same draws, so the difference of two datasets made with the same seeds is paired. Own, since the sums of
a group are weighted by its count; scipy.stats.bootstrap draws the images themselves.

Shapes: G groups, R rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.metrics import Z95, Estimate, share_of

ROUNDS = 1000
GROUPS = 20


@dataclass(frozen=True)
class Resampled:
    """A metric of all images and of each resample.

    The interval is the spread of the resamples around the value of all images, since a Fréchet distance of a resample
    is biased upwards. `bounds` is set where an interval is known in closed form.
    """

    value: float
    resamples: NDArray[np.float64] = field(repr=False)  # [R]
    num_groups: int
    bounds: tuple[float, float] | None = None

    @property
    def estimate(self) -> Estimate:
        """Value and 95 % interval."""
        if self.bounds is not None:
            return Estimate(self.value, *self.bounds)
        # Resamples of G groups vary by the sum of squares over G instead of G - 1
        spread = float(self.resamples.std(ddof=1)) * math.sqrt(self.num_groups / (self.num_groups - 1))
        half = t95(self.num_groups - 1) * spread
        return Estimate(self.value, self.value - half, self.value + half)

    def minus(self, other: Resampled) -> Resampled:
        """The paired difference to `other`, measured on the same draws."""
        if (self.num_groups, len(self.resamples)) != (other.num_groups, len(other.resamples)):
            raise InputError(
                f"expected a comparison on the same draws, got {len(self.resamples)} of {self.num_groups} groups and "
                f"{len(other.resamples)} of {other.num_groups}"
            )
        return Resampled(self.value - other.value, self.resamples - other.resamples, self.num_groups)


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """The mean of metrics that were measured on the same draws."""
    resamples = np.mean([part.resamples for part in parts], axis=0)
    return Resampled(sum(part.value for part in parts) / len(parts), resamples, parts[0].num_groups)


def draws(num_groups: int, rounds: int = ROUNDS, seed: int = 0) -> NDArray[np.int64]:
    """How often each group is drawn: int64 [R, G], rows sum to G. Raises InputError with fewer than two groups."""
    if num_groups < 2 or rounds < 2:
        raise InputError(f"expected two groups and rounds or more for an interval, got {num_groups} and {rounds}")
    return np.random.default_rng(seed).multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=rounds)


def t95(degrees: int) -> float:
    """97.5 % quantile of Student's t (Cornish-Fisher, to 0.5 %; up to 5 degrees a table)."""
    exact = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058}
    if degrees in exact:
        return exact[degrees]
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def resampled_mean(
    values: NDArray, group: NDArray[np.integer], rounds: int = ROUNDS, seed: int = 0, share: bool = False
) -> Resampled:
    """Mean of a number [n] for each image, `group` int [n]. Raises InputError with fewer than two groups.

    With `share` the numbers are hits and the interval is Wilson's, which stays right where all images are hits or none.
    """
    if len(values) == 0:
        raise InputError("expected at least 2 images for an interval, got none")
    num_groups = int(group.max()) + 1
    sums, sizes = (np.bincount(group, weights, num_groups).astype(np.float64) for weights in (values, None))
    counts = draws(num_groups, rounds, seed)
    resamples = (counts @ sums) / np.maximum(counts @ sizes, 1)
    if not share:
        return Resampled(float(sums.sum() / sizes.sum()), resamples, num_groups)
    wilson = share_of(int(sums.sum()), len(values))
    return Resampled(wilson.value, resamples, num_groups, (wilson.low, wilson.high))
