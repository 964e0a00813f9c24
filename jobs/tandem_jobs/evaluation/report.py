"""The result of an evaluation: JSON with the keys of torch-fidelity where it has one, and a table for the dataset card.

The extractor says what a number is called: FID, sFID, KID and Inception Score are those of the standard Inception
network alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tandem.metrics import Estimate
from tandem_workers.features.extractors import Extractor, Quantity


@dataclass(frozen=True)
class MetricName:
    """How a metric is called.

    Attributes:
        quantity: what extractors make a name of.
        key: in JSON.
        inception_key: in JSON, where the standard Inception network made the features: that of torch-fidelity.
    """

    quantity: Quantity
    key: str
    inception_key: str | None = None
    lower_is_better: bool = False


NAMES = {
    "frechet": MetricName("Fréchet distance", "frechet_distance", "frechet_inception_distance", True),
    "spatial_frechet": MetricName(
        "spatial Fréchet distance", "spatial_frechet_distance", "spatial_frechet_inception_distance", True
    ),
    "kernel": MetricName("kernel distance", "kernel_distance_mean", "kernel_inception_distance_mean", True),
    "classifier_score": MetricName("classifier score", "classifier_score_mean", "inception_score_mean"),
    "precision": MetricName("precision", "precision"),
    "recall": MetricName("recall", "recall"),
    "density": MetricName("density", "density"),
    "coverage": MetricName("coverage", "coverage"),
    "agreement": MetricName("agreement with the label", "agreement"),
    "accuracy_score": MetricName("accuracy after training on the dataset", "classification_accuracy_score"),
    "real_accuracy": MetricName("accuracy after training on real pictures", "classification_accuracy_real"),
    "accuracy_gap": MetricName("difference of these accuracies", "classification_accuracy_difference"),
}


@dataclass(frozen=True)
class Measured:
    """One metric. `std` is the deviation over subsets or splits, which the field gives beside a mean."""

    metric: str  # a key of NAMES
    estimate: Estimate
    std: float | None = None
    difference: Estimate | None = None  # to the dataset of --against
    made_by: str | None = None  # in place of the extractor

    def __post_init__(self) -> None:
        if self.metric not in NAMES:
            raise ValueError(f"expected one of {', '.join(NAMES)}, got {self.metric!r}")


@dataclass(frozen=True)
class Report:
    """All that `tandem evaluate` says about a dataset."""

    dataset: str
    num_images: int
    extractor: Extractor
    measured: tuple[Measured, ...]
    reference: str | None = None
    num_reference: int | None = None  # None: statistics that do not say it
    against: str | None = None
    agreement_by_class: Mapping[str, Estimate] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # sample, subsets, seeds, versions, hashes: to repeat it
    notes: tuple[str, ...] = ()  # what was left out and why, what a reader must know

    def name(self, measured: Measured) -> str:
        """The name of a metric in a table."""
        quantity = NAMES[measured.metric].quantity
        text = f"{quantity} ({measured.made_by})" if measured.made_by else self.extractor.number_name(quantity)
        return text if text[:2] == "sF" else text[0].upper() + text[1:]

    def key(self, metric: str) -> str:
        """The key of a metric in JSON."""
        name = NAMES[metric]
        is_standard = name.quantity in self.extractor.standard_names
        return name.inception_key if is_standard and name.inception_key else name.key

    def to_json(self) -> dict[str, Any]:
        """Values at the top as torch-fidelity writes them, intervals and everything else below keys of their own."""
        values: dict[str, Any] = {}
        intervals, differences, names = {}, {}, {}
        for measured in self.measured:
            key = self.key(measured.metric)
            names[key] = self.name(measured)
            values[key] = measured.estimate.value
            if measured.std is not None:
                values[key.removesuffix("_mean") + "_std"] = measured.std
            intervals[key] = [measured.estimate.low, measured.estimate.high]
            if measured.difference is not None:
                differences[key] = asdict(measured.difference)
        return values | {
            "intervals_95": intervals,
            "names": names,
            "agreement_by_class": {name: asdict(estimate) for name, estimate in self.agreement_by_class.items()},
            "dataset": self.dataset,
            "images": self.num_images,
            "reference": self.reference,
            "reference_images": self.num_reference,
            "against": self.against,
            "difference_to_against": differences,
            "extractor": {"name": self.extractor.title, **self.extractor.identity},
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of a table: name, value, interval and, where there is another dataset, the difference to it."""
        found = []
        for measured in self.measured:
            estimate, other = measured.estimate, measured.difference
            arrow = "↓" if NAMES[measured.metric].lower_is_better else "↑"
            cells = [f"{self.name(measured)} {arrow}", short(estimate.value)]
            cells.append(f"{short(estimate.low)} to {short(estimate.high)}")
            if self.against is not None:
                cells.append(f"{short(other.value)} [{short(other.low)}, {short(other.high)}]" if other else "")
            found.append(tuple(cells))
        return found

    @property
    def columns(self) -> tuple[str, ...]:
        """The head of the table."""
        return ("Metric", "Value", "95 % interval", *(["minus the other dataset"] if self.against is not None else []))

    @property
    def about(self) -> str:
        """What was measured, in a line."""
        count = f"{self.num_reference:,} of " if self.num_reference else ""
        reference = f" against {count}{self.reference}" if self.reference else ""
        network = f"{self.extractor.title} ({self.extractor.sha256[:8]})"
        size, resizer = self.extractor.input_size, self.extractor.resizer
        return f"{self.num_images:,} images{reference}; features: {network}, resized to {size} px by {resizer}."

    def to_markdown(self) -> str:
        """A table with a line on what was measured, for a dataset card."""
        lines = [f"| {' | '.join(self.columns)} |", "|---" * len(self.columns) + "|"]
        lines += [f"| {' | '.join(cells)} |" for cells in self.rows()]
        lines += ["", self.about, *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def short(value: float) -> str:
    """Four digits, and no exponent where a table can do without."""
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"
