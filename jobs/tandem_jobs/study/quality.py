"""Quality of settings on the features of one network, for the studies that measure it.

All settings have the same seeds, so that differences are paired. Features are kept beside the token ids.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from tandem.config import to_dict
from tandem.metrics import Estimate
from tandem_jobs.evaluation.agreement import agreement
from tandem_jobs.evaluation.bootstrap import GROUPS, Resampled, resampled_mean
from tandem_jobs.evaluation.class_match import classifier_names, default_extractor
from tandem_jobs.evaluation.feature_arrays import group_of
from tandem_jobs.evaluation.frechet import FeatureSums, resampled_frechet
from tandem_jobs.evaluation.inception_score import SPLITS, ProbabilitySums, inception_score
from tandem_jobs.evaluation.neighbours import neighbours
from tandem_jobs.evaluation.report import NAMES
from tandem_jobs.run.progress import say
from tandem_jobs.study.kept import kept_arrays
from tandem_jobs.study.real_pictures import (
    RealPictures,
    arrays,
    features_of,
    find_splits,
    real_of_reference,
    real_of_splits,
)
from tandem_jobs.study.result import from_here
from tandem_jobs.study.study_options import StudyOptions
from tandem_jobs.study.subject import Setting, Subject
from tandem_workers.features.choose_extractor import choose_extractor
from tandem_workers.features.extractors import FEATURES, LOGITS, Columns
from tandem_workers.features.inception import VARIABLE

METRICS = ("agreement", "frechet", "classifier_score", "precision", "recall")


class QualityOptions(StudyOptions):
    """How images are measured."""

    data: Path | None = Field(
        None,
        description="real pictures, a folder with train/<class>/<image> and heldout/<class>/<image>; default for the "
        "embedded models: OUT/pictures, made as by tandem pictures (needs npm)",
    )
    reference: str | None = Field(
        None,
        description="real pictures of any kind instead: a folder, a dataset, .tar, .parquet or .npz files, also s3://; "
        "an .npz of mu and sigma gives the Fréchet distance alone",
    )
    features: str | None = Field(
        None,
        description="network whose features are compared: inception, efficientnet-lite0, embedded or a TorchScript "
        f"file; default: embedded for models of its 12 classes, else inception if {VARIABLE} names its file, else "
        "efficientnet-lite0",
    )
    rounds: PositiveInt = Field(1000, ge=2, description="resamples of each interval")

    @model_validator(mode="after")
    def check_pictures(self) -> QualityOptions:
        if self.data is not None and self.reference is not None:
            raise ValueError("expected --data or --reference, got both")
        return self


@dataclass(frozen=True)
class Measured:
    """What was measured of a setting, by metric; what could not be is absent."""

    values: Mapping[str, Resampled]
    agreement_by_class: Mapping[str, Estimate]

    def __getitem__(self, metric: str) -> Resampled:
        return self.values[metric]

    def estimate(self, metric: str) -> Estimate | None:
        found = self.values.get(metric)
        return found.estimate if found else None

    def minus(self, other: Measured, metric: str) -> Estimate | None:
        """The paired difference to another setting."""
        if metric not in self.values or metric not in other.values:
            return None
        return self.values[metric].minus(other.values[metric]).estimate


class Quality:
    """A subject, the network that makes features, and real pictures."""

    def __init__(self, subject: Subject, spec: QualityOptions):
        self.subject, self.spec = subject, spec
        names = tuple(subject.models.class_names)
        self.extractor = choose_extractor(spec.features or default_extractor(subject.models.class_names)[0])
        known = classifier_names(self.extractor)
        self.knows_classes = known is not None and tuple(known) == names  # whether its logits are those of the labels
        found = None if spec.reference else find_splits(spec.data, spec.out, subject.models)
        self.network = network = self.extractor.load(subject.device)
        side = self.extractor.input_size
        self.has_logits = LOGITS in network(np.zeros((1, side, side, 3), np.uint8))
        if found is None:
            assert spec.reference is not None
            self.real: RealPictures = real_of_reference(spec.reference, self.extractor, network, spec.batch)
        else:
            self.real = real_of_splits(str(found[0]), found[1], spec.images, self.extractor, network, spec.batch)

    def of(self, subject: Subject) -> Quality:
        """The same network and real pictures for images of another subject, which may be more or fewer."""
        found = copy.copy(self)
        found.subject = subject
        return found

    @property
    def index(self) -> NDArray[np.int64]:
        """Of every image."""
        return np.arange(self.subject.spec.images)

    def columns(self, setting: Setting) -> Columns:
        """Features, and logits where the network has them, of a setting's images; kept in OUT/features."""
        ids_nL = self.subject.ids(setting)
        found = [self.columns_of_part(setting, part, ids_nL) for part in self.subject.parts()]
        return {name: np.concatenate([columns[name] for columns in found]) for name in found[0]}

    def columns_of_part(self, setting: Setting, part: range, ids_nL: NDArray[np.uint16]) -> Columns:
        """The same of some images, given the token ids of all."""
        name = f"{setting.name}-{part.start}-{part.stop}-{self.extractor.folder}.npz"
        key = {**self.subject.key(setting, part), "extractor": self.extractor.identity}

        def make() -> Columns:
            pixels = self.subject.pixels(ids_nL[part.start : part.stop])
            columns = features_of(self.extractor, self.network, self.spec.batch, pixels)
            return {name: columns[name] for name in (FEATURES, LOGITS) if name in columns}

        return kept_arrays(self.spec.out / "features" / name, key, make)

    def columns_of(self, pixels_n3HW: Tensor) -> Columns:
        """The same of pictures uint8 [n, 3, H, W]."""
        return features_of(self.extractor, self.network, self.spec.batch, arrays(pixels_n3HW))

    def measured(self, setting: Setting) -> Measured:
        """All metrics that the features and the real pictures allow."""
        found = self.some_measured(setting, METRICS)
        say(f"{setting.name}: {self.heading('frechet')} {found['frechet'].estimate}")
        return found

    def some_measured(self, setting: Setting, only: Collection[str]) -> Measured:
        """Some of them."""
        columns, rounds = self.columns(setting), self.spec.rounds
        features, group = columns[FEATURES], group_of(self.index, GROUPS)
        values: dict[str, Resampled] = {}
        by_class: dict[str, Estimate] = {}
        if "frechet" in only:
            sums = FeatureSums(features.shape[1], int(group.max()) + 1).add(features, group)
            values["frechet"] = resampled_frechet(sums, self.real.gaussian, rounds)
        if self.real.features is not None and {"precision", "recall"} & set(only):
            near, theirs = neighbours(features, self.real.features), np.arange(len(self.real.features))
            values["precision"] = resampled_mean(near.precise, group, rounds, share=True)
            values["recall"] = resampled_mean(near.recalled, group_of(theirs, GROUPS), rounds, share=True)
        if LOGITS in columns and "classifier_score" in only:
            split = group_of(self.index, SPLITS)
            p_nC = torch.from_numpy(columns[LOGITS]).softmax(dim=1).numpy()
            sums_of_p = ProbabilitySums(p_nC.shape[1], int(split.max()) + 1).add(p_nC, split)
            values["classifier_score"] = inception_score(sums_of_p, rounds)
        if self.knows_classes and "agreement" in only:
            labels = self.subject.labels()
            agreed = agreement(self.index, labels, columns[LOGITS].argmax(axis=1), len(columns[LOGITS][0]), rounds)
            values["agreement"], names = agreed.overall, self.subject.models.class_names
            by_class = {names[label]: estimate for label, estimate in agreed.by_class.items()}
        return Measured(values, by_class)

    def metrics(self) -> tuple[str, ...]:
        """Those that are measured."""
        lacking = set() if self.knows_classes else {"agreement"}
        if self.real.features is None:
            lacking |= {"precision", "recall"}
        if not self.has_logits:
            lacking |= {"classifier_score"}
        return tuple(metric for metric in METRICS if metric not in lacking)

    def heading(self, metric: str) -> str:
        """Its name in tables: FID and Inception Score only on the standard Inception network's features."""
        name = NAMES[metric]
        text = self.extractor.standard_names.get(name.quantity, name.quantity)
        return text[:1].upper() + text[1:]

    def key(self, metric: str) -> str:
        """Its name in JSON."""
        name = NAMES[metric]
        return (name.inception_key if self.extractor.standard_names else None) or name.key

    def json_of(self, measured: Measured, against: Measured, other: str) -> dict[str, Any]:
        """Estimates, paired differences to another setting, and agreement class by class."""
        return {
            **{self.key(metric): measured.estimate(metric) for metric in measured.values},
            f"minus_{other}": {self.key(metric): measured.minus(against, metric) for metric in measured.values},
            "agreement_by_class": dict(measured.agreement_by_class),
        }

    def recipe(self) -> dict[str, Any]:
        """What is needed to repeat it."""
        subject, spec = self.subject, self.spec
        return {
            "models": {role: from_here(ref.label) for role, ref in subject.refs.items()},
            "weights_sha256": {
                **{r: ref.sha256 for r, ref in subject.refs.items()},
                "vqvae": subject.models.vqvae.sha256,
            },
            **{name: getattr(spec, name) for name in ("images", "seed", "batch", "rounds")},
            "sampling": to_dict(subject.sampling),
            "dtype": subject.dtype_name,
            "preparation": vars(subject.preparation),
            "threads": torch.get_num_threads(),
            "device": subject.device.type,
            "features": {"name": self.extractor.title, **self.extractor.identity},
            "reference": self.real.name,
            "reference_images": None if self.real.features is None else len(self.real.features),
        }

    @property
    def sources(self) -> str:
        """The network and the real pictures, in two sentences."""
        extractor = self.extractor
        return (
            f"Features: {extractor.title}, sha256 {extractor.sha256[:16]}…, pictures of {extractor.input_size} px "
            f"({extractor.resizer}). Real pictures: {self.real.name}."
        )

    def notes(self) -> list[str]:
        """How the numbers come about, and what is left out."""
        spec, extractor = self.spec, self.extractor
        found = [
            f"{spec.images:,} images of every setting, classes in turn, with the same seeds (seed {spec.seed}). "
            f"{self.sources} In brackets 95 % intervals; differences are paired."
        ]
        if not extractor.standard_names:
            found.append("The paper's FID is on Inception features and ImageNet: only directions compare with ours.")
        if not self.knows_classes:
            found.append(f"Agreement with the label is left out: {extractor.title} has other classes than the models.")
        if not self.has_logits:
            found.append(f"The classifier score is left out: {extractor.title} has no classes.")
        if self.real.features is None:
            found.append("Precision and recall are left out: the reference holds statistics alone.")
        if self.real.note:
            found.append(self.real.note)
        if self.real.gaussian.few_images or spec.images <= len(self.real.gaussian.mean):
            found.append("There are fewer images than features: the Fréchet distance is far above that of more images.")
        return found


def chosen(quality: Quality, settings: Sequence[Setting]) -> dict[str, Measured]:
    """Every setting by its name."""
    return {setting.name: quality.measured(setting) for setting in settings}


def model_sizes(subject: Subject, setting: Setting) -> str:
    """Parameters of the models of a setting in millions: "5.4 + 0.9 M"."""
    roles = dict.fromkeys(role for role, _ in setting.parts)
    return " + ".join(f"{subject.configs[role].num_parameters / 1e6:.3g}" for role in roles) + " M"
