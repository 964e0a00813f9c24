"""`tandem study fine-tuned`: Table 2, CoDe with fine-tuned and with distilled models beside training-free CoDe.

All settings have the same seeds. A control has had equally many further steps of ordinary training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image
from pydantic import Field, PositiveInt

from tandem.errors import InputError
from tandem.metrics import Estimate
from tandem_jobs.study import paper, without_guidance
from tandem_jobs.study.figures import NO_PLOT, can_plot
from tandem_jobs.study.fine_tuned_figure import plot
from tandem_jobs.study.held_out import held_out, held_out_table
from tandem_jobs.study.quality import Measured, Quality, QualityOptions
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.subject import Setting, Subject
from tandem_jobs.study.training_free import LOOKED_AT, nearest_distance, tensors
from tandem_jobs.study.tuned_pairs import EVERY_N, HINT, Contestants, Pair, draft_steps_of, parse_pairs

EXAMPLES = """examples: pairs that are fine-tuned for one N each, a control, and a distilled pair for all N
  tandem study fine-tuned --out studies --tuned 4=d4.safetensors,r4.safetensors --tuned 5=d5.safetensors,r5.safetensors
  tandem study fine-tuned --out studies --tuned 5=d5.safetensors,r5.safetensors --images 24000 \\
      --control 5=more_d.safetensors,more_r.safetensors
  tandem study fine-tuned --out studies --distilled d.safetensors,r.safetensors --draft-steps 4,5,6 --images 10000"""
NAMES = {"tuned": "fine-tuned", "control": "control", "tuned-refiner": "fine-tuned refiner alone"}


class FineTunedSpec(QualityOptions):
    """Measure fine-tuned and distilled models beside the models that they came from, on the same seeds."""

    tuned: tuple[str, ...] | None = Field(
        None,
        description="models fine-tuned for one N: N=DRAFTER,REFINER; again for each N; N=DRAFTER or N=,REFINER: the "
        "other one is unchanged; files are as for --drafter",
    )
    control: tuple[str, ...] | None = Field(
        None, description="like --tuned, after as many further steps of ordinary training; without N=: for every N"
    )
    distilled: tuple[str, ...] | None = Field(
        None, description="DRAFTER,REFINER that have learned guidance: they decode at cfg 0, for every N"
    )
    repeats: PositiveInt = Field(6, description="rounds in which guided and distilled models are timed")


def run(spec: FineTunedSpec) -> dict[str, Any]:
    """Measure all pairs, and write OUT/fine-tuned.json, .md and .png. InputError without any."""
    if not (spec.tuned or spec.distilled):
        raise InputError(
            "expected fine-tuned models: --tuned N=DRAFTER,REFINER, or --distilled DRAFTER,REFINER; none is embedded, "
            "so Table 2 of the paper has no row of ours",
            "tandem study training-free measures the models as they are",
        )
    kinds = {kind: parse_pairs(f"--{kind}", getattr(spec, kind) or ()) for kind in ("tuned", "control", "distilled")}
    check_distilled(kinds["distilled"])
    steps = draft_steps_of(spec.draft_steps, kinds["tuned"], kinds["control"])
    subject = Subject(spec.model_copy(update={"draft_steps": steps}))
    pairs = {kind: Contestants(subject, kind, given) for kind, given in kinds.items()}
    study = FineTuned(Quality(subject, spec), pairs, spec.repeats)
    compared = {}
    if kinds["distilled"]:
        guided = {n: found["training-free"] for n, found in study.by_steps.items()}
        pair = kinds["distilled"][EVERY_N]
        compared = without_guidance.compare(study.quality, pair, guided, pairs["distilled"], spec.repeats)
    return report(study.result(compared), spec.out)


def check_distilled(pairs: Mapping[int, Pair]) -> None:
    """InputError unless it is one pair for all N."""
    if pairs and (list(pairs) != [EVERY_N] or None in vars(pairs[EVERY_N]).values()):
        raise InputError("--distilled: expected one pair for all N, DRAFTER,REFINER", HINT.replace("N=", "", 1))


@dataclass
class FineTuned:
    """What is measured, and the report."""

    quality: Quality
    pairs: Mapping[str, Contestants]
    repeats: int
    nearest: dict[str, float] = field(default_factory=dict)  # by setting: median distance to the nearest picture

    @property
    def subject(self) -> Subject:
        return self.quality.subject

    @cached_property
    def by_steps(self) -> dict[int, dict[str, Measured]]:
        """Every setting at each N, by what it is."""
        return {n: {name: self.measured(s) for name, s in self.settings(n).items()} for n in self.subject.steps}

    @cached_property
    def drafter(self) -> Measured:
        """The drafter alone."""
        return self.measured(self.subject.alone[1])

    def settings(self, steps: int) -> dict[str, Setting]:
        """Settings at N; those without a model of their own are left out."""
        found = {"training-free": self.subject.code(steps)}
        own = {kind: self.pairs[kind].setting(steps) for kind in ("tuned", "control")}
        own["tuned-refiner"] = self.pairs["tuned"].refiner_alone(steps)
        return found | {NAMES[kind]: setting for kind, setting in own.items() if setting}

    def measured(self, setting: Setting) -> Measured:
        found, splits = self.quality.measured(setting), self.quality.real.splits
        if splits is not None and setting.name not in self.nearest:
            self.nearest[setting.name] = nearest_distance(tensors(self.subject, setting, LOOKED_AT), splits[0])
        return found

    def differences(self, steps: int, name: str) -> dict[str, Estimate | None]:
        """Paired differences of the Fréchet distance to the other settings of N, and to the drafter alone."""
        found = self.by_steps[steps]
        others = {other: measured for other, measured in found.items() if other != name} | {"drafter": self.drafter}
        return {other: found[name].minus(measured, "frechet") for other, measured in others.items()}

    def values(self, compared: Mapping[int, Any]) -> dict[str, Any]:
        """Everything in JSON."""
        measured = {
            str(n): {
                name: {
                    **self.quality.json_of(one, found["training-free"], "training_free"),
                    "frechet_minus": self.differences(n, name),
                    "nearest_picture": self.nearest.get(self.settings(n)[name].name),
                }
                for name, one in found.items()
            }
            for n, found in self.by_steps.items()
        }
        drafter = self.quality.json_of(self.drafter, self.drafter, "drafter")
        values = {**self.quality.recipe(), "draft_steps": self.subject.steps, "drafter": drafter, "settings": measured}
        return values | ({"distilled": {str(n): one for n, one in compared.items()}} if compared else {})

    def result(self, compared: Mapping[int, Any]) -> StudyResult:
        tables, values = [self.table()], self.values(compared)
        findings = [line for n in self.subject.steps for line in self.findings(n)]
        if compared:
            tables.append(without_guidance.table(self.quality, compared))
            findings += without_guidance.findings(self.quality, compared)
        if (splits := self.quality.real.splits) and len(splits[1]) > 1:
            values["heldout_cross_entropy"] = losses = held_out(self.subject, splits[1])
            values["heldout_nearest_picture"] = nearest_distance([splits[1].pixels], splits[0])
            tables.append(held_out_table(self.subject, losses, len(splits[1])))
        pictures = {"fine-tuned": self.figure()} if can_plot() else {}
        heading = f"Fine-tuning at N = {', '.join(map(str, self.subject.steps))} of {self.subject.scales}"
        return StudyResult("fine-tuned", heading, values, tables, pictures, findings, self.notes(values))

    def figure(self) -> Image.Image:
        """Fréchet distances of all settings at every N, and their paired differences to training-free CoDe."""
        frechet: dict[str, dict[int, Estimate]] = defaultdict(dict)
        minus: dict[str, dict[int, Estimate]] = defaultdict(dict)
        for n, found in self.by_steps.items():
            for name, one in found.items():
                frechet[name][n] = one["frechet"].estimate
                if name != "training-free":
                    minus[name][n] = one["frechet"].minus(found["training-free"]["frechet"]).estimate
        return plot(frechet, minus, self.drafter["frechet"].estimate, self.quality.heading("frechet"))

    def table(self) -> StudyTable:
        """All metrics, paired differences of the Fréchet distance, and the paper's FID."""
        metrics, name = self.quality.metrics(), self.quality.heading("frechet")
        named = {key for found in self.by_steps.values() for key in found}
        beyond = [key for key in ("training-free", "control", "fine-tuned") if key in named and len(named) > 1]
        columns = ("N", "setting", *map(self.quality.heading, metrics), *(f"{name} minus {other}" for other in beyond))
        last = ("nearest picture", "paper: N of 10", "FID")
        rows: list[list[Cell]] = [
            [
                None,
                "drafter alone",
                *map(self.drafter.estimate, metrics),
                *[None] * len(beyond),
                *self.last_cells("drafter"),
            ]
        ]
        for n, found in self.by_steps.items():
            papers = paper.same_left(self.subject.scales - n)
            for key, measured in found.items():
                differences = self.differences(n, key)
                cells = [*map(measured.estimate, metrics), *(differences.get(other) for other in beyond)]
                rows.append([n, key, *cells, *self.last_cells(self.settings(n)[key].name, key, papers)])
        return StudyTable("The same seeds before and after fine-tuning", (*columns, *last), rows)

    def last_cells(self, setting: str, key: str = "", papers: int | None = None) -> list[Cell]:
        """Distance to the nearest picture, the paper's N, and its FID."""
        theirs = {"training-free": paper.TRAINING_FREE, "fine-tuned": paper.FINE_TUNED}.get(key, {})
        fid = paper.DRAFTER.fid if setting == "drafter" else theirs[papers].fid if papers in theirs else None
        return [self.nearest.get(setting), papers if fid else None, fid]

    def findings(self, steps: int) -> list[str]:
        """Whether fine-tuning at N gains beyond the intervals, and whether its refiner alone would do."""
        found, name = self.by_steps[steps], self.quality.heading("frechet")
        if "fine-tuned" not in found:
            return []
        gains = {
            other: self.differences(steps, "fine-tuned")[other]
            for other in ("training-free", "control")
            if other in found
        }
        lines = [
            f"N = {steps}: fine-tuned CoDe's {name} is {judged(gain)} {other}'s: {gain}."
            for other, gain in gains.items()
            if gain
        ]
        alone = NAMES["tuned-refiner"]
        if alone in found and (more := self.differences(steps, alone)["fine-tuned"]):
            lines.append(f"N = {steps}: that of the {alone} is {judged(more)} fine-tuned CoDe's: {more}.")
        return lines

    def notes(self, values: Mapping[str, Any]) -> list[str]:
        """How to read it."""
        found = [
            *self.quality.notes(),
            "The paper's FID at N = 9, 8, 7 and 6 of 10: fine-tuned 1.94, 1.98, 2.11 and 2.27, training-free 1.99, "
            "2.10, 2.25 and 2.42.",
        ]
        if "heldout_nearest_picture" in values:
            found.append(
                f"Nearest picture: median distance (root mean square, 0 to 255) of the first {LOOKED_AT:,} images to "
                f"the nearest training picture; for held-out pictures {values['heldout_nearest_picture']:.1f}."
            )
        if "distilled" in values:
            found.append(
                f"Guided and distilled pairs take turns in one process, at batch {self.subject.spec.batch}: medians of "
                f"{self.repeats} rounds and their range. FLOPs are counted by the published code's; ours "
                "computes embedding and head once an image under guidance too."
            )
        if not can_plot():
            found.append(NO_PLOT)
        return found


def judged(difference: Estimate) -> str:
    """A difference in words; below 0 is better."""
    if difference.low <= 0 <= difference.high:
        return "within its interval of"
    return "below" if difference.high < 0 else "above"
