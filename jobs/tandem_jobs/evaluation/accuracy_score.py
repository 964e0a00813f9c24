"""Classification accuracy score (Ravuri and Vinyals, 2019): a classifier trained on the dataset alone, tested on real
pictures, beside one trained on as many real ones.

Two classifiers, and a score says which. `network_hits`, the small network of `tandem.training.classifier` on pixels, is
the score as published but for the network's size. `linear_probe_hits`, a linear probe on given features, is cheap, one
pass without training, but the features were learnt from other real pictures. The probe is solved by least squares, own,
because its sums add up over blocks where scikit-learn needs all features at once; tests compare both.

Shapes: n training images, t test pictures, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.training.classifier import examine, train_classifier
from tandem.training.pictures import PictureSet
from tandem_jobs.evaluation.feature_arrays import check_finite, check_rows, check_same_features

RIDGE = 1e-3
Block = tuple[NDArray[np.floating], NDArray[np.integer]]  # features [B, F] and labels [B]


def equally_many(
    dataset_labels: NDArray[np.integer], real_labels: NDArray[np.integer], seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of both sets, drawn so that each class has as many images in one as in the other.

    Raises InputError when no two classes are in both: there is nothing to tell apart.
    """
    rng = np.random.default_rng(seed)
    rows: tuple[list[NDArray], list[NDArray]] = ([], [])
    common = np.intersect1d(dataset_labels[dataset_labels >= 0], real_labels)
    if len(common) < 2:
        raise InputError(f"expected two classes or more that dataset and real pictures share, got {len(common)}")
    for label in common:
        found = [np.flatnonzero(labels == label) for labels in (dataset_labels, real_labels)]
        fewest = min(map(len, found))
        for kept, places in zip(rows, found, strict=True):
            kept.append(rng.choice(places, fewest, replace=False))
    return np.sort(np.concatenate(rows[0])), np.sort(np.concatenate(rows[1]))


def linear_probe_hits(train: Iterable[Block], test: Iterable[Block], num_classes: int) -> NDArray[np.bool_]:
    """Which test pictures a linear probe gets right: bool [t]. Both sides are blocks of features and labels.

    Raises InputError where there are no images, or a label that is not from 0 to `num_classes` - 1.
    """
    probe: LinearProbe | None = None
    for features, labels in train:
        check_block(features, labels, num_classes)
        probe = probe or LinearProbe(features.shape[1], num_classes)
        probe.add(features, labels)
    if probe is None:
        raise InputError("expected images to train a probe on, got none")
    probe.solve()
    hits = []
    for features, labels in test:
        check_block(features, labels, num_classes)
        hits.append(probe.predict(features) == labels)
    if not hits:
        raise InputError("expected test pictures, got none")
    return np.concatenate(hits)


def check_block(features: NDArray[np.floating], labels: NDArray[np.integer], num_classes: int) -> None:
    """InputError unless each row of the features [B, F] has a label of the classes."""
    check_rows(features, "training or test features")
    if len(labels) != len(features) or not ((labels >= 0) & (labels < num_classes)).all():
        raise InputError(f"expected a label from 0 to {num_classes - 1} for each of {len(features)} images")


class LinearProbe:
    """Least squares of one-hot classes on features, with a ridge of `RIDGE` times the mean variance of a feature."""

    def __init__(self, num_features: int, num_classes: int):
        self.n = 0
        self.features = np.zeros(num_features)
        self.classes = np.zeros(num_classes)
        self.products = np.zeros((num_features, num_features))
        self.joint = np.zeros((num_features, num_classes))

    def add(self, features: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
        """Add a block of images."""
        check_same_features(features.shape[1], len(self.features))
        check_finite(features, "features")
        x_nF, y_nC = features.astype(np.float64), np.eye(len(self.classes))[labels]
        self.n += len(x_nF)
        self.features += x_nF.sum(axis=0)
        self.classes += y_nC.sum(axis=0)
        self.products += x_nF.T @ x_nF
        self.joint += x_nF.T @ y_nC

    def solve(self) -> None:
        """Find weights and bias. Raises InputError when all features are constant."""
        self.mean_F, mean_C = self.features / self.n, self.classes / self.n
        scatter_FF = self.products / self.n - np.outer(self.mean_F, self.mean_F)
        variance = float(np.trace(scatter_FF)) / len(self.mean_F)
        if variance <= np.finfo(np.float64).eps * float(np.square(self.mean_F).max()):
            raise InputError(f"expected features that differ to train a probe on, got {self.n} equal images")
        ridge_FF = RIDGE * variance * np.eye(len(self.mean_F))
        self.weights_FC = np.linalg.solve(scatter_FF + ridge_FF, self.joint / self.n - np.outer(self.mean_F, mean_C))
        self.bias_C = np.where(self.classes > 0, mean_C, -np.inf)  # a class that was not seen is never predicted

    def predict(self, features: NDArray[np.floating]) -> NDArray[np.int64]:
        """Classes int64 [n] of features [n, F]."""
        check_same_features(features.shape[1], len(self.features))
        check_finite(features, "features")
        return ((features - self.mean_F) @ self.weights_FC + self.bias_C).argmax(axis=1)


def network_hits(train: PictureSet, test: PictureSet, steps: int, batch: int = 64, seed: int = 0) -> NDArray[np.bool_]:
    """Which test pictures the network, trained on the pixels of `train` from nothing, gets right: bool [t].

    Raises InputError when sizes or classes of the pictures differ.
    """
    if train.classes != test.classes or train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise InputError(
            f"expected training and test pictures of the same classes and size, got {len(train.classes)} classes of "
            f"{list(train.pixels.shape[1:])} and {len(test.classes)} of {list(test.pixels.shape[1:])}"
        )
    model = train_classifier(train, steps, batch, seed)
    return (examine(model, test.pixels)[0] == test.labels).numpy()
