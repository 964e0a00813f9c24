"""`tandem study no-reference`: Table 5 of the paper, scores of single pictures, where the user has installed pyiqa.

pyiqa's licence is PolyForm Noncommercial, and it fetches its files when it is used. So Tandem neither depends on it nor
offers it as an extra, and lets it fetch nothing. The package `brisque` is no alternative: it compiles libsvm, needs
OpenCV, and its 0.2.0 fails with numpy 2.4; BRISQUE comes with pyiqa.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from tandem.config import to_dict
from tandem.errors import InputError, JobError
from tandem.metrics import Estimate, mean_of, paired_difference
from tandem_jobs.run.progress import say
from tandem_jobs.study.paper import NO_REFERENCE, same_left
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.study_options import StudyOptions
from tandem_jobs.study.subject import Setting, Subject

EXAMPLES = """examples:
  pip install pyiqa                                    its licence: PolyForm Noncommercial
  tandem study no-reference --out studies
  tandem study no-reference --out studies --scores musiq,niqe --images 480"""
PACKAGE = "pyiqa"
LICENCE = "PolyForm Noncommercial"
ScoreName = Literal["musiq", "clipiqa", "niqe", "brisque"]
Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Score:
    """A score of pyiqa: its title, whether lower is better, and the least side of a picture in pixels."""

    title: str
    lower_is_better: bool = False
    least_px: int = 1

    @property
    def heading(self) -> str:
        return f"{self.title} {'↓' if self.lower_is_better else '↑'}"


SCORES: dict[ScoreName, Score] = {
    "musiq": Score("MUSIQ"),
    "clipiqa": Score("CLIPIQA"),
    "niqe": Score("NIQE", True, 96),
    "brisque": Score("BRISQUE", True),
}


class NoReferenceSpec(StudyOptions):
    """Scores of single pictures (MUSIQ, CLIPIQA, NIQE) for plain VAR and CoDe, by pyiqa where it is installed."""

    images: PositiveInt = Field(480, description="images of every setting, spread evenly over the classes")
    scores: tuple[ScoreName, ...] = Field(("musiq", "clipiqa", "niqe"), description="scores of pyiqa")


def run(spec: NoReferenceSpec) -> dict[str, Any]:
    """Score the images of all settings, and write the report. InputError if not one score can be had."""
    if spec.images < 2:
        raise InputError(f"--images: expected 2 or more for an interval, got {spec.images}")
    package = open_package()
    subject = Subject(spec)
    metrics, missing = open_metrics(package, spec.scores, subject)
    if not metrics:
        raise InputError(f"expected a score that works here, got none: {' '.join(missing)}")
    settings = list(reversed(subject.settings()))
    values_n = {setting.name: scores_of(subject, setting, metrics) for setting in settings}
    drafter = values_n["drafter"]
    measured = {
        name: {
            key: {"mean": mean_of(of[key]), "minus_drafter": paired_difference(of[key], drafter[key])}
            for key in metrics
        }
        for name, of in values_n.items()
    }
    values = {
        "images": spec.images,
        "seed": spec.seed,
        "sampling": to_dict(subject.sampling),
        "dtype": subject.dtype_name,
        "weights_sha256": subject.models.hashes,
        "package": f"{PACKAGE} {getattr(package, '__version__', '')}".strip(),
        "licence": LICENCE,
        "settings": measured,
        "missing": missing,
    }
    notes = [
        f"Scores by {values['package']}, whose licence is {LICENCE}: not for commercial use. In brackets 95 % "
        "intervals; differences are paired by seed. The paper's row has as many scales left to the refiner, at 256 px.",
        *missing,
    ]
    result = StudyResult(
        "no-reference",
        "Scores of single pictures",
        values,
        [table(subject, settings, measured, list(metrics))],
        findings=findings(measured, list(metrics)),
        notes=notes,
    )
    return report(result, spec.out)


def open_package() -> Any:
    """pyiqa. InputError, with its licence, if it is not installed or does not import."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(
            f"expected the package {PACKAGE} (licence {LICENCE}), found none: MUSIQ, CLIPIQA and NIQE need it",
            f"Tandem does not bring it: pip install {PACKAGE}, if its licence suits you, and let it fetch its files",
        )
    try:
        with without_network():
            return importlib.import_module(PACKAGE)
    except Exception as error:  # whatever a package of others raises
        raise InputError(f"expected {PACKAGE} to import, got {one_line(error)}") from error


def open_metrics(
    package: Any, names: Sequence[ScoreName], subject: Subject
) -> tuple[dict[ScoreName, Metric], list[str]]:
    """The scores that can be had, and a sentence for each that cannot."""
    metrics: dict[ScoreName, Metric] = {}
    missing = []
    side = subject.models.image_size
    for name in dict.fromkeys(names):
        score = SCORES[name]
        if side < score.least_px:
            missing.append(f"{score.title} is missing: it needs pictures of {score.least_px} px, these have {side}.")
            continue
        try:
            with without_network():
                metrics[name] = package.create_metric(name, device=subject.device)
        except Exception as error:  # a missing file shows as whatever the package makes of it
            missing.append(f"{score.title} is missing: {PACKAGE} cannot open it without fetching ({one_line(error)}).")
    return metrics, missing


@contextmanager
def without_network() -> Iterator[None]:
    """Context manager: no host is found, so that no library fetches a file that the user has not put there."""
    found = socket.getaddrinfo

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("Tandem fetches no files for it")

    socket.getaddrinfo = refuse
    try:
        yield
    finally:
        socket.getaddrinfo = found


def one_line(error: Exception) -> str:
    """The error's type and the beginning of its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@torch.inference_mode()
def scores_of(subject: Subject, setting: Setting, metrics: dict[ScoreName, Metric]) -> dict[ScoreName, Tensor]:
    """Every score of every image, float64 [n]. JobError for one that is not finite or not one number an image."""
    found: dict[ScoreName, list[Tensor]] = {name: [] for name in metrics}
    for pixels_BHW3 in subject.pixels(subject.ids(setting)):
        images_B3HW = torch.from_numpy(pixels_BHW3).permute(0, 3, 1, 2).float().div(255).to(subject.device)
        for name, metric in metrics.items():
            values_B = torch.as_tensor(metric(images_B3HW)).double().cpu().flatten()
            if len(values_B) != len(images_B3HW) or not values_B.isfinite().all():
                raise JobError(f"{name}: expected {len(images_B3HW)} finite scores, got {values_B.tolist()[:4]}")
            found[name].append(values_B)
    say(f"{setting.name}: scored")
    return {name: torch.cat(parts) for name, parts in found.items()}


def table(subject: Subject, settings: list[Setting], measured: dict[str, Any], names: list[ScoreName]) -> StudyTable:
    """A score, its difference to plain VAR, and the paper's."""
    columns = [head for name in names for head in (SCORES[name].heading, "minus drafter", "paper")]
    rows: list[list[Cell]] = []
    for setting in settings:
        row: list[Cell] = [setting.name]
        for name in names:
            own = measured[setting.name][name]
            row += [own["mean"], own["minus_drafter"], paper_score(setting, name, subject.scales)]
        rows.append(row)
    return StudyTable(f"{subject.spec.images} images of every setting", ("setting", *columns), rows)


def paper_score(setting: Setting, name: ScoreName, num_scales: int) -> float | None:
    """The paper's score of the drafter alone, or with as many scales left to the refiner."""
    if setting.name == "drafter":
        return NO_REFERENCE[None].get(name)
    left = num_scales - setting.parts[0][1]
    return NO_REFERENCE.get(same_left(left), {}).get(name) if left else None


def findings(measured: dict[str, Any], names: list[ScoreName]) -> list[str]:
    """Which settings of CoDe differ from plain VAR."""
    sentences = []
    for name in names:
        better: list[str] = []
        worse: list[str] = []
        for setting, scores in measured.items():
            difference: Estimate = scores[name]["minus_drafter"]
            if difference.low > 0 or difference.high < 0:
                higher_is_better = not SCORES[name].lower_is_better
                (better if (difference.value > 0) == higher_is_better else worse).append(setting)
        text = "; ".join(
            f"{word} than plain VAR: {', '.join(found)}"
            for word, found in (("better", better), ("worse", worse))
            if found
        )
        sentences.append(f"{SCORES[name].title}: {text or 'no setting differs from plain VAR'}.")
    return sentences
