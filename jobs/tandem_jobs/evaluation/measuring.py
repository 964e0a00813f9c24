"""All metrics of one dataset from its features: one pass over the blocks, then what the sums and a sample give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.metrics import Estimate
from tandem_jobs.evaluation.agreement import Agreement, agreement
from tandem_jobs.evaluation.bootstrap import GROUPS, Resampled, resampled_mean
from tandem_jobs.evaluation.feature_arrays import SAMPLE, group_of
from tandem_jobs.evaluation.feature_set import FeatureSet, Sample, SampleWriter
from tandem_jobs.evaluation.frechet import FeatureSums, Gaussian, streamed_frechet
from tandem_jobs.evaluation.inception_score import SPLITS, ProbabilitySums, inception_score
from tandem_jobs.evaluation.kernel_distance import kernel_distance
from tandem_jobs.evaluation.neighbours import neighbours
from tandem_workers.features.extractors import FEATURES, LOGITS, SPATIAL

NEED_PICTURES = ("kernel", "precision", "recall", "density", "coverage")
NEED_REFERENCE = ("frechet", *NEED_PICTURES)


@dataclass(frozen=True)
class Gathered:
    """What one pass over the features of a place leaves.

    Attributes:
        sums, spatial: of all features; `spatial` where the extractor makes such features.
        scores: sums of class probabilities, where it makes logits.
        predicted: int32 [n], the class of the largest logit, where it makes logits.
        sample: features of the sample, in a file.
    """

    features: FeatureSet
    sums: FeatureSums
    spatial: FeatureSums | None
    scores: ProbabilitySums | None
    predicted: NDArray[np.int32] | None
    sample: Sample


def gather(features: FeatureSet, path: Path, sample: int = SAMPLE) -> Gathered:
    """Read all features once. The sample's go to a `.npy` file at `path`."""
    n = len(features)
    split = group_of(features.index, SPLITS)
    writer, predicted = SampleWriter(features, path, sample), np.zeros(n, dtype=np.int32)
    sums: dict[str, FeatureSums] = {}
    scores: ProbabilitySums | None = None
    for rows, block in features.blocks((FEATURES, SPATIAL, LOGITS)):
        writer.add(rows, block.columns[FEATURES])
        for name in (FEATURES, SPATIAL):
            if (values := block.columns.get(name)) is not None:
                sums.setdefault(name, FeatureSums(values.shape[1], 1)).add(values)
        if (logits := block.columns.get(LOGITS)) is not None:
            scores = scores or ProbabilitySums(logits.shape[1], min(SPLITS, n))
            scores.add(softmax(logits), split[rows])
            predicted[rows] = logits.argmax(axis=1)
    return Gathered(
        features, sums[FEATURES], sums.get(SPATIAL), scores, None if scores is None else predicted, writer.close()
    )


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Reference:
    """What a dataset is compared with. `pictures` is None where only statistics were given."""

    gaussian: Gaussian
    spatial: Gaussian | None = None
    pictures: Gathered | None = None


@dataclass
class Measurements:
    """Metrics by the keys of `report.NAMES`, and those that could not be measured, with the cause."""

    values: dict[str, Resampled] = field(default_factory=dict)
    std: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def take(self, metrics: tuple[str, ...], measure: Callable[[], dict[str, Resampled]]) -> None:
        """Measure metrics; where they cannot be of these images, keep the cause."""
        try:
            self.values |= measure()
        except InputError as error:
            self.left_out |= dict.fromkeys(metrics, str(error))


def measure(ours: Gathered, reference: Reference | None) -> Measurements:
    """All metrics but those that need labels."""
    found = Measurements()
    if ours.scores is not None:
        scores = ours.scores
        found.take(("classifier_score",), lambda: {"classifier_score": inception_score(scores)})
        found.std["classifier_score"] = float(scores.scores().std())
    if reference is None:
        return found
    for metric, column, sums, theirs in (
        ("frechet", FEATURES, ours.sums, reference.gaussian),
        ("spatial_frechet", SPATIAL, ours.spatial, reference.spatial),
    ):
        if sums is not None and theirs is not None:
            found.take((metric,), partial(of_frechet, metric, column, ours.features, sums, theirs))
    if reference.pictures is not None:
        pictures = reference.pictures
        found.take(NEED_PICTURES[1:], lambda: of_neighbours(ours, pictures))
        found.take(NEED_PICTURES[:1], lambda: of_kernel(ours, pictures, found.std))
    return found


def of_frechet(
    metric: str, column: str, ours: FeatureSet, sums: FeatureSums, reference: Gaussian
) -> dict[str, Resampled]:
    """Fréchet distance of one column of the features; reads it once more for the interval."""
    group = group_of(ours.index, GROUPS)
    blocks = ((block.columns[column], group[rows]) for rows, block in ours.blocks((column,)))
    return {metric: streamed_frechet(sums, reference, blocks, int(group.max()) + 1)}


def of_kernel(ours: Gathered, reference: Gathered, std: dict[str, float]) -> dict[str, Resampled]:
    """Kernel distance of the samples; its deviation over subsets goes to `std`."""
    distance = kernel_distance(ours.sample.features, reference.sample.features)
    std["kernel"] = distance.std
    return {"kernel": distance.resampled()}


def of_neighbours(ours: Gathered, reference: Gathered) -> dict[str, Resampled]:
    """Precision, recall, density and coverage of the samples."""
    found = neighbours(ours.sample.features, reference.sample.features)
    group, theirs = (group_of(each.features.index[each.sample.rows], GROUPS) for each in (ours, reference))
    return {
        "precision": resampled_mean(found.precise, group, share=True),
        "recall": resampled_mean(found.recalled, theirs, share=True),
        "density": resampled_mean(found.density, group),
        "coverage": resampled_mean(found.covered, theirs, share=True),
    }


def of_agreement(ours: Gathered, classes: NDArray[np.int32], num_classes: int) -> Agreement:
    """Agreement of the classifier with labels int32 [n] that are translated into its classes. InputError."""
    assert ours.predicted is not None
    return agreement(ours.features.index, classes, ours.predicted, num_classes)


def difference(ours: Resampled, other: Resampled, paired: bool) -> Estimate:
    """Ours minus the other's, with its interval: paired where both are of the same draws.

    Without pairs, intervals add up as those of independent estimates do (Newcombe, 1998, for shares).
    """
    if paired:
        return ours.minus(other).estimate
    a, b = ours.estimate, other.estimate
    apart = a.value - b.value
    low = ((a.value - a.low) ** 2 + (b.high - b.value) ** 2) ** 0.5
    high = ((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5
    return Estimate(apart, apart - low, apart + high)


def are_paired(ours: FeatureSet, other: FeatureSet) -> bool:
    """Whether an image of one has the same index and label in the other."""
    return np.array_equal(ours.index, other.index) and np.array_equal(ours.label, other.label)
