"""Agreement of a classifier with the labels of a dataset, overall and for each class.

Own, since it is a count; the interval is Wilson's, which stays right for a class of few images that all agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.metrics import Estimate, share_of
from tandem_jobs.evaluation.bootstrap import GROUPS, ROUNDS, Resampled, resampled_mean
from tandem_jobs.evaluation.feature_arrays import group_of


@dataclass(frozen=True)
class Agreement:
    """Share of labelled images whose label the classifier gives."""

    overall: Resampled
    by_class: dict[int, Estimate]  # classes that the dataset has
    num_unlabelled: int

    def worst_first(self) -> list[int]:
        """Classes by their agreement; of equal ones the larger number of images, then the lower class, comes first."""
        return sorted(self.by_class, key=lambda label: (self.by_class[label].value, self.by_class[label].high, label))


def agreement(
    index: NDArray[np.integer],
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    num_classes: int,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Agreement:
    """Compare labels and predicted classes, int [n] each; labels below 0 are none.

    Raises InputError when no image has a label, or one has a label that the classifier does not know.
    """
    if not len(index) == len(labels) == len(predicted):
        raise InputError(
            f"expected a label and a prediction for each of {len(index)} images, got {len(labels)} and {len(predicted)}"
        )
    labelled = labels >= 0
    if not labelled.any():
        raise InputError(f"expected labels to compare the classifier with, got {len(labels)} images without one")
    unknown = np.unique(labels[labels >= num_classes])
    if len(unknown):
        raise InputError(f"expected labels from 0 to {num_classes - 1} as the classifier has, got {int(unknown[0])}")
    hits, classes = (predicted == labels)[labelled], labels[labelled]
    right, images = np.bincount(classes, hits, num_classes), np.bincount(classes, minlength=num_classes)
    return Agreement(
        resampled_mean(hits, group_of(index[labelled], GROUPS), rounds, seed, share=True),
        {int(c): share_of(int(right[c]), int(images[c])) for c in np.flatnonzero(images)},
        int((~labelled).sum()),
    )
