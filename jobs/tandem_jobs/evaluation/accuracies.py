"""The classification accuracy score of a dataset: by a linear probe on features, or by a network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.training.pictures import PictureSet
from tandem_jobs.evaluation.accuracy_score import Block, equally_many, linear_probe_hits, network_hits
from tandem_jobs.evaluation.bootstrap import GROUPS, Resampled, resampled_mean
from tandem_jobs.evaluation.class_match import labels_of, match, translated
from tandem_jobs.evaluation.feature_arrays import group_of
from tandem_jobs.evaluation.feature_set import FeatureSet
from tandem_workers.features.extractors import FEATURES

METRICS = ("accuracy_score", "real_accuracy", "accuracy_gap")


def in_classes_of(dataset: FeatureSet, other: FeatureSet) -> NDArray[np.int32]:
    """Labels of the other images as classes of the dataset, -1 where it has none: by name, or else by number."""
    if dataset.names is None or other.names is None:
        return other.label
    return translated(other.label, match(labels_of(other.label), other.names, dataset.names))


def accuracies(dataset: FeatureSet, real: FeatureSet, test: FeatureSet, steps: int | None) -> dict[str, Resampled]:
    """Accuracy on real test pictures of a classifier trained on the dataset, of one trained on as many real pictures of
    each class, and their difference, paired over the test pictures.

    `steps`: of a network trained on pixels, all of which are in memory; None: a linear probe on features. Test pictures
    of classes that one of the others lacks are left out. InputError where fewer than two are left.
    """
    real_label, test_label = in_classes_of(dataset, real), in_classes_of(dataset, test)
    rows, real_rows = equally_many(dataset.label, real_label)
    classes = np.unique(dataset.label[rows])
    tested = np.flatnonzero(np.isin(test_label, classes))
    if len(tested) < 2:
        raise InputError(f"expected test pictures of the {len(classes)} classes in common, got {len(tested)}")
    if steps:
        exam = picture_set(test, test_label, tested, classes)
        hits = [
            network_hits(picture_set(features, label, places, classes), exam, steps)
            for features, label, places in ((dataset, dataset.label, rows), (real, real_label, real_rows))
        ]
    else:
        hits = [
            linear_probe_hits(chosen(features, label, places), chosen(test, test_label, tested), int(classes.max()) + 1)
            for features, label, places in ((dataset, dataset.label, rows), (real, real_label, real_rows))
        ]
    group = group_of(test.index[tested], GROUPS)
    ours, theirs = (resampled_mean(each, group, share=True) for each in hits)
    return dict(zip(METRICS, (ours, theirs, ours.minus(theirs)), strict=True))


def picture_set(
    features: FeatureSet, label: NDArray[np.int32], places: NDArray[np.int64], classes: NDArray[np.int32]
) -> PictureSet:
    """Pictures in memory. InputError where they have several sizes."""
    found = features.pictures(places)
    if len(shapes := {pixels.shape for pixels in found.values()}) > 1:
        raise InputError(
            f"{features.place}: expected images of one size to train a network on, got {len(shapes)} sizes"
        )
    stacked = torch.from_numpy(np.stack([found[int(row)] for row in places])).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(np.searchsorted(classes, label[places]))
    return PictureSet(stacked, labels, tuple(map(str, places.tolist())), tuple(map(str, classes.tolist())))


def chosen(features: FeatureSet, label: NDArray[np.int32], places: NDArray[np.int64]) -> Iterator[Block]:
    """Features and labels of these rows, block by block."""
    wanted = np.zeros(len(features), dtype=bool)
    wanted[places] = True
    for rows, block in features.blocks():
        if wanted[rows].any():
            yield block.columns[FEATURES][wanted[rows]], label[rows][wanted[rows]]
