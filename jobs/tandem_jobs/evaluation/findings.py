"""What an evaluation found: measures every part, puts the report together, and says in notes what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.class_names import ClassNames
from tandem.errors import InputError
from tandem.metrics import Estimate
from tandem_jobs.evaluation.accuracies import METRICS, accuracies, in_classes_of
from tandem_jobs.evaluation.agreement import Agreement
from tandem_jobs.evaluation.class_match import classifier_names, labels_of, match, named, translated
from tandem_jobs.evaluation.feature_set import FeatureSet
from tandem_jobs.evaluation.frechet import Gaussian
from tandem_jobs.evaluation.inputs import AGAINST, DATASET, REFERENCE, TEST, Inputs
from tandem_jobs.evaluation.measuring import (
    NEED_PICTURES,
    NEED_REFERENCE,
    Gathered,
    Measurements,
    Reference,
    are_paired,
    difference,
    gather,
    measure,
    of_agreement,
)
from tandem_jobs.evaluation.report import NAMES, Measured, Report

MAX_SIZES = 3


@dataclass(frozen=True)
class Findings:
    """The report, and what its pictures are drawn from."""

    report: Report
    dataset: Gathered
    reference: Gathered | None
    agreement: Agreement | None  # by class of the classifier
    classes: NDArray[np.int32]  # of each image as the classifier numbers them, -1 for none
    names: ClassNames | None  # of the classifier


def evaluate(
    inputs: Inputs, folder: Path, sample: int, settings: dict[str, Any], tell: Callable[[str], None]
) -> Findings:
    """Measure everything. Features of samples go to files in `folder`; `tell` gets a line for each long step."""
    notes: list[str] = []

    def gathered(part: str) -> Gathered | None:
        if (features := inputs.features(part)) is None:
            return None
        tell(f"measuring {features.place}: {len(features):,} images")
        notes.extend(about_sizes(features, inputs))
        return gather(features, folder / f"{part}.npy", sample)

    ours = gathered(DATASET)
    assert ours is not None
    pictures, other = gathered(REFERENCE), gathered(AGAINST)
    reference = compared_with(inputs, pictures)
    found, classes, agreed = measured(inputs, ours, reference, notes)
    differences = {}
    if other is not None:
        others, _, _ = measured(inputs, other, reference, None)
        paired = are_paired(ours.features, other.features)
        notes.append(about_pairs(ours.features, other.features, paired))
        common = [metric for metric in found.values if metric in others.values]
        differences = {m: difference(found.values[m], others.values[m], paired) for m in common}
    names = classifier_names(inputs.extractor)
    notes += notes_on(inputs, ours, reference, found)
    report = Report(
        dataset=ours.features.place,
        num_images=len(ours.features),
        extractor=inputs.extractor,
        measured=tuple(
            Measured(
                metric,
                found.values[metric].estimate,
                found.std.get(metric),
                differences.get(metric),
                trained(inputs) if metric in METRICS else None,
            )
            for metric in NAMES
            if metric in found.values
        ),
        reference=inputs.reference.place if inputs.reference else None,
        num_reference=len(pictures.features) if pictures else None,
        against=other.features.place if other else None,
        agreement_by_class=by_name(agreed, names),
        settings=settings,
        notes=tuple(dict.fromkeys(notes)),
    )
    return Findings(report, ours, pictures, agreed, classes, names)


def trained(inputs: Inputs) -> str | None:
    """The classifier of the accuracies, where it is not a probe on the report's features."""
    return f"network on pixels, {inputs.classifier_steps} steps" if inputs.classifier_steps else None


def compared_with(inputs: Inputs, pictures: Gathered | None) -> Reference | None:
    """The reference: statistics that were given, else those of its pictures."""
    if inputs.reference is None:
        return None
    gaussian, spatial = inputs.reference.gaussian, inputs.reference.spatial
    if pictures is not None:
        gaussian = gaussian or pictures.sums.gaussian()
        spatial = spatial or (pictures.spatial.gaussian() if pictures.spatial else None)
    assert gaussian is not None
    return Reference(gaussian, spatial, pictures)


def measured(
    inputs: Inputs, ours: Gathered, reference: Reference | None, notes: list[str] | None
) -> tuple[Measurements, NDArray[np.int32], Agreement | None]:
    """All metrics of one dataset, its labels as the classifier's classes, and the agreement by class."""
    found, agreed = measure(ours, reference), None
    classes, cause = classes_of(inputs, ours)
    if cause:
        found.left_out["agreement"] = cause
    else:
        try:
            names = classifier_names(inputs.extractor)
            agreed = of_agreement(ours, classes, len(names or ()))
            found.values["agreement"] = agreed.overall
        except InputError as error:
            found.left_out["agreement"] = str(error)
    if agreed is not None and agreed.num_unlabelled and notes is not None:
        count = len(classes) - agreed.num_unlabelled
        notes.append(f"agreement is that of {count:,} images: {lacking(ours.features, classes)}.")
    test = inputs.features(TEST)
    if test is not None and reference is not None and reference.pictures is not None:
        real = reference.pictures.features
        found.take(METRICS, lambda: accuracies(ours.features, real, test, inputs.classifier_steps))
    return found, classes, agreed


def classes_of(inputs: Inputs, ours: Gathered) -> tuple[NDArray[np.int32], str]:
    """The labels as classes of the classifier, or why they are none."""
    features, theirs = ours.features, classifier_names(inputs.extractor)
    nothing = np.full(len(features), -1, dtype=np.int32)
    if ours.predicted is None:
        return nothing, f"{inputs.extractor.title} gives no classes"
    if theirs is None:
        return nothing, f"the classes of {inputs.extractor.title} have no names that are known here"
    if not labels_of(features.label):
        return nothing, "the images have no labels"
    if features.names is None:
        return nothing, "labels are numbers alone; --class-names says what they stand for"
    classes = translated(features.label, match(labels_of(features.label), features.names, theirs))
    if (classes < 0).all():
        some = named(labels_of(features.label), features.names)
        return nothing, f"{inputs.extractor.title} has none of the classes ({some})"
    return classes, ""


def lacking(features: FeatureSet, classes: NDArray[np.int32]) -> str:
    """Which images have no class of the classifier."""
    without = labels_of(features.label[classes < 0])
    parts = [f"it does not know {named(without, features.names)}"] if without else []
    unlabelled = int((features.label < 0).sum())
    return "; ".join([*parts, *([f"{unlabelled:,} have no label"] if unlabelled else [])])


def by_name(agreed: Agreement | None, names: ClassNames | None) -> dict[str, Estimate]:
    """Agreement of each class, the worst first."""
    if agreed is None or names is None:
        return {}
    return {names[label]: agreed.by_class[label] for label in agreed.worst_first()}


def about_sizes(features: FeatureSet, inputs: Inputs) -> list[str]:
    """Sizes that are not the one that the network takes, and what the source left out."""
    side = inputs.extractor.input_size
    sizes, found = features.sizes.most_common(), list(features.source.notes)
    if len(sizes) > 1:
        shown = ", ".join(f"{count:,} of {size}" for size, count in sizes[:MAX_SIZES])
        more = f" and {len(sizes) - MAX_SIZES} other sizes" if len(sizes) > MAX_SIZES else ""
        found.append(f"{features.place}: images of {len(sizes)} sizes ({shown}{more}), all resized to {side} x {side}.")
    elif sizes and sizes[0][0] != f"{side} x {side}":
        found.append(f"{features.place}: images of {sizes[0][0]}, resized to {side} x {side}.")
    return found


def about_pairs(ours: FeatureSet, other: FeatureSet, paired: bool) -> str:
    """Whether differences are paired, and why."""
    if paired:
        return f"differences to {other.place} are paired: its images have the same indices and labels."
    return (
        f"differences to {other.place} are not paired, as its images have other indices or labels: "
        "their intervals are wider than those of paired ones."
    )


def notes_on(inputs: Inputs, ours: Gathered, reference: Reference | None, found: Measurements) -> list[str]:
    """What was left out and why, and what makes numbers worth less."""

    def names(metrics: list[str]) -> str:
        quantities = (NAMES[metric].quantity for metric in metrics)
        return ", ".join(inputs.extractor.standard_names.get(quantity, quantity) for quantity in quantities)

    notes = [inputs.reference.note] if inputs.reference and inputs.reference.note else []
    if reference is None:
        notes.append(f"without --reference there is no {names(list(NEED_REFERENCE))}.")
    elif reference.pictures is None:
        notes.append(f"statistics alone give no {names(list(NEED_PICTURES))}: these need pictures as --reference.")
    causes: dict[str, list[str]] = {}
    for metric, cause in found.left_out.items():
        causes.setdefault(cause, []).append(metric)
    notes += [f"{names(metrics)} left out: {cause}." for cause, metrics in causes.items()]
    if "frechet" in found.values and reference is not None:
        notes += few_images("the dataset", ours.sums.gaussian()) + few_images("the reference", reference.gaussian)
    if reference is not None and reference.pictures is not None:
        notes += about_classes(ours.features, reference.pictures.features)
    return notes


def few_images(what: str, gaussian: Gaussian) -> list[str]:
    if not gaussian.few_images:
        return []
    return [
        f"{what} has {gaussian.n:,} images, no more than the {len(gaussian.mean):,} features: its covariance is "
        "singular, and the Fréchet distance is far above that of more images."
    ]


def about_classes(ours: FeatureSet, real: FeatureSet) -> list[str]:
    """Classes of the dataset that the reference lacks."""
    if not labels_of(ours.label) or not labels_of(real.label):
        return []
    there = set(labels_of(in_classes_of(ours, real)))
    if not (missing := [label for label in labels_of(ours.label) if label not in there]):
        return []
    count = int(np.isin(ours.label, missing).sum())
    some = named(missing, ours.names)
    classes = f"{len(missing)} of the {len(labels_of(ours.label))} classes"
    return [f"the reference lacks {classes} of the dataset ({some}), {count:,} images."]
