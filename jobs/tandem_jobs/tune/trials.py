"""Measures candidates of `tandem tune` by the decode that jobs run: quality on the same seeds, speed in rounds."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from tandem.collaborative import decode
from tandem.counting.costs import decode_flops, scale_flops
from tandem.errors import InputError
from tandem.graphs import FIRST_CAPTURED, release_graphs
from tandem.guidance import rows_of_scales
from tandem.metrics import Estimate
from tandem.vqvae import Vqvae
from tandem_jobs.bench.repeated import median_of
from tandem_jobs.evaluation.accuracy_score import linear_probe_hits
from tandem_jobs.evaluation.bootstrap import GROUPS, Resampled, resampled_mean
from tandem_jobs.evaluation.feature_arrays import group_of
from tandem_jobs.run.progress import say
from tandem_jobs.study.kept import kept_arrays
from tandem_jobs.study.quality import Quality
from tandem_jobs.study.subject import Subject
from tandem_jobs.tune.candidates import Candidate, Precision
from tandem_jobs.tune.race import Losses, Speed
from tandem_workers.features.extractors import FEATURES
from tandem_workers.models.model_set import DTYPES, load_tokenizer
from tandem_workers.stages.refiner import to_uint8

BLOCK = 3  # candidates that are timed beside the reference at once
OF_SPEED = ("weights_sha256", "dtype", "threads", "device", "batch")  # of a study's recipe


@dataclass(frozen=True)
class Measure:
    """
    Attributes:
        margin: by which a candidate may be worse, unless another one is asked for.
        rises: whether more is better.
        narrows: whether more images narrow its interval.
    """

    margin: float
    rises: bool
    narrows: bool
    words: str


MEASURES = {
    "frechet": Measure(0.05, False, True, "Fréchet distance of the features"),
    "agreement": Measure(0.01, True, True, "share of images of which the classifier says their label"),
    "cas": Measure(
        0.01, True, False, "share of held-out pictures that a linear probe trained on the images gets right"
    ),
}


class SubjectTrials:
    """Candidates and the reference, by the models of a study."""

    def __init__(
        self,
        subjects: Mapping[Precision, Subject],
        quality: Quality,
        reference: Candidate,
        measures: Sequence[str],
    ):
        self.subjects, self.quality, self.reference = subjects, quality, reference
        self.measures = measures
        self.vqvaes: dict[Precision, Vqvae] = {}
        self.found: dict[tuple[Candidate, int, int], dict[str, Resampled]] = {}
        if "agreement" in measures and not quality.knows_classes:
            raise InputError("--measures: expected none of agreement: the features' network has other classes")

    @property
    def seed(self) -> int:
        """Of the search."""
        return self.quality.spec.seed

    def losses(self, candidate: Candidate, images: int) -> Losses:
        return self.losses_at(candidate, images, self.seed)

    def losses_at(self, candidate: Candidate, images: int, seed: int) -> dict[str, Estimate]:
        """Paired losses of a candidate, by the first images of a seed."""
        ours, theirs = (self.measured(one, images, seed) for one in (candidate, self.reference))
        worse = {name: (theirs, ours) if MEASURES[name].rises else (ours, theirs) for name in self.measures}
        return {name: first[name].minus(second[name]).estimate for name, (first, second) in worse.items()}

    def measured(self, candidate: Candidate, images: int, seed: int) -> dict[str, Resampled]:
        """Every measure of a candidate."""
        key = candidate, images, seed
        if key not in self.found:
            quality = self.quality.of(self.subjects[candidate.precision].of(images, seed))
            setting = candidate.setting(quality.subject.scales, seed)
            measured = quality.some_measured(setting, self.measures)
            cas = {"cas": self.accuracy(quality.columns(setting)[FEATURES], quality)} if "cas" in self.measures else {}
            self.found[key] = {**measured.values, **cas}
        return self.found[key]

    def accuracy(self, features: NDArray[np.float32], quality: Quality) -> Resampled:
        """Of a linear probe that learns from the images and is tested on held-out pictures."""
        pictures, labels = self.held_out
        train = [(features, quality.subject.labels())]
        hits = linear_probe_hits(train, [(pictures, labels)], len(quality.subject.models.class_names))
        group = group_of(np.arange(len(labels)), GROUPS)
        return resampled_mean(hits, group, quality.spec.rounds)

    @cached_property
    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features and labels of the held-out pictures."""
        assert self.quality.real.splits is not None
        pictures = self.quality.real.splits[1]
        return self.quality.columns_of(pictures.pixels)[FEATURES], pictures.labels.numpy()

    def speeds(self, candidates: Sequence[Candidate], images: int, repeats: int) -> list[Speed]:
        return self.speeds_of(candidates, f"round-{images}", repeats)

    def speeds_of(self, candidates: Sequence[Candidate], name: str, repeats: int) -> list[Speed]:
        """Of candidates that take turns with the reference, a few at a time: a slow minute of the machine meets both,
        and CUDA graphs of all of them are kept. Times are kept under a name."""
        found = list[Speed]()
        for at in range(0, len(candidates), BLOCK):
            found += self.speeds_of_block(candidates[at : at + BLOCK], f"{name}-{at}", repeats)
            say(f"timed {len(found)} of {len(candidates)} candidates")
        return found

    def speeds_of_block(self, candidates: Sequence[Candidate], name: str, repeats: int) -> list[Speed]:
        batch = self.quality.spec.batch
        key = {
            "candidates": [one.options() for one in (self.reference, *candidates)],
            "repeats": repeats,
            "device_name": device_name(self.subjects["plain"].device),
            "preparations": {name: vars(one.preparation) for name, one in self.subjects.items()},
            **{name: value for name, value in self.quality.recipe().items() if name in OF_SPEED},
        }

        def make() -> dict[str, NDArray[np.float64]]:
            return {"seconds": self.seconds(candidates, repeats)}

        reference, *others = kept_arrays(self.quality.spec.out / "speeds" / f"{name}.npz", key, make)["seconds"].T
        return [Speed(median_of((batch / own).tolist()), median_of((reference / own).tolist())) for own in others]

    def seconds(self, candidates: Sequence[Candidate], repeats: int) -> NDArray[np.float64]:
        """[repeats, 1 + candidates]: of a batch by the reference, then by each candidate."""
        release_graphs()
        everybody = [self.reference, *candidates]
        on_gpu = self.subjects["plain"].device.type == "cuda"
        unpaid = FIRST_CAPTURED if on_gpu else 1  # rounds that warm up
        rounds = [[self.seconds_of_batch(one) for one in everybody] for _ in range(unpaid + repeats)]
        return np.array(rounds[unpaid:])

    def seconds_of_batch(self, candidate: Candidate) -> float:
        """From labels to pixels in host memory."""
        subject = self.subjects[candidate.precision]
        setting, index = candidate.setting(subject.scales, subject.spec.seed), np.arange(subject.spec.batch)
        began = time.perf_counter()
        to_uint8(decode(self.vqvae(candidate.precision), subject.ids_of_batch(setting, index)))
        return time.perf_counter() - began

    def vqvae(self, precision: Precision) -> Vqvae:
        """As jobs have it; pixels whose quality is measured are made in float32."""
        if precision not in self.vqvaes:
            subject = self.subjects[precision]
            self.vqvaes[precision] = load_tokenizer(
                subject.models.vqvae,
                subject.pyramid.patch_nums,
                DTYPES[subject.dtype_name],
                subject.device,
                subject.preparation,
            )
        return self.vqvaes[precision]

    def flops(self, candidate: Candidate) -> float:
        """Counted work of an image, with VQVAE decode."""
        subject, start, total = self.subjects[candidate.precision], 0, 0.0
        for role, stop in candidate.parts(subject.scales):
            sampling = candidate.sampling if role == "drafter" else candidate.sampling.of_refiner
            rows = rows_of_scales([sampling], subject.scales, start, stop)
            total += sum(scale_flops(subject.configs[role], start, stop, rows))
            start = stop
        return total + decode_flops(replace(subject.models.vqvae_config, patch_nums=subject.pyramid.patch_nums))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
