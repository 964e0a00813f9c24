"""How often each row of the data is drawn, where classes have different numbers of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def balanced(labels: NDArray[np.integer[Any]], groups: NDArray[np.int64], power: float) -> NDArray[np.float64]:
    """Probability of drawing each row: a class weighs (distinct pictures)^power, each of its pictures alike.

    Args:
        labels: [n].
        groups: [n]; rows of one class with equal numbers are variants of one picture, and share its weight.
        power: 1: pictures are drawn equally often; 0: classes are.

    Returns float64 [n], which sum to 1.
    """
    pairs = np.stack([labels.astype(np.int64), groups])
    pictures, picture_of, variants = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    per_class = np.bincount(pictures[0])
    picture_of = picture_of.reshape(-1)
    weights = per_class[labels] ** float(power - 1) / variants[picture_of]
    return weights / weights.sum()
