"""`tandem tune`: the cheapest settings whose quality is not worse than a reference's, and the frontier beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tandem.errors import InputError
from tandem_jobs.options.flags import flag_of
from tandem_jobs.options.options import Share
from tandem_jobs.run.progress import say
from tandem_jobs.study.quality import Quality, QualityOptions
from tandem_jobs.study.result import report
from tandem_jobs.study.subject import Subject
from tandem_jobs.tune.candidates import Candidate, Precision, default_schedules, grid
from tandem_jobs.tune.race import Losses, Standing, race, rounds_of
from tandem_jobs.tune.trials import MEASURES, SubjectTrials
from tandem_jobs.tune.tuned_report import Confirmation, Outcome, result_of
from tandem_workers.models.model_set import resolve_models

EXAMPLES = f"""examples: the embedded models; others with their reference pictures; what was found, used
  tandem tune --out tuned
  tandem tune --out tuned --drafter var_d30 --refiner var_d16 --vqvae vae_ch160v4096z32 --features inception \\
      --reference VIRTUAL_imagenet256_labeled.npz --images 10240 --first-images 1280 --confirm-images 50000
  tandem generate --settings tuned/tuned.json --classes all --per-class 20 --out faster

Every combination of --draft-steps, --cfgs, --schedules, --refiner-cfgs, --top-ps, --temperature-scales and --precisions
is a candidate. All are measured on --first-images images, the better half on twice as many, and so on up to --images.
The fastest one left that promises to hold is then measured on new seeds. It is chosen if the upper end of the 95 %
interval of its loss is within --margins; else the next one is tried. If none holds, the reference is chosen.

measures: {"; ".join(f"{name}: {one.words}" for name, one in MEASURES.items())}

OUT/
  tuned.json   for --settings of generate, serve and plan: the choice, the frontier, all numbers
  tuned.md     the same as a page, tuned.png as a plot
  ids/, features/, speeds/   what was measured; the same command goes on there"""


# Options by the name of what they vary
AXES = {
    "draft_steps": "draft_steps",
    "cfg": "cfgs",
    "cfg_schedule": "schedules",
    "refiner_cfg": "refiner_cfgs",
    "top_p": "top_ps",
    "temperatures": "temperature_scales",
    "precision": "precisions",
}


class TuneSpec(QualityOptions):
    """Find the fastest N, guidance, sampling and precision whose quality is not worse than that of a reference."""

    images: PositiveInt = Field(2560, description="images of a candidate in the last round of the search")
    first_images: PositiveInt | None = Field(
        None,
        description="images in the first round, which each round doubles; default: an eighth of --images, at least one "
        "of each class",
    )
    confirm_images: PositiveInt = Field(10_000, description="images by which a choice is confirmed, of new seeds")
    tries: PositiveInt = Field(3, description="candidates that are tried for confirmation, the fastest first")
    measures: tuple[str, ...] | None = Field(
        None,
        description=f"what quality is: {', '.join(MEASURES)}; the first one ranks; default: frechet, and agreement "
        "where the features' network knows the classes",
    )
    margins: tuple[NonNegativeFloat, ...] | None = Field(
        None,
        description="by how much each measure may be worse; default: "
        + ", ".join(f"{one.margin:g} for {name}" for name, one in MEASURES.items()),
    )
    cfgs: tuple[NonNegativeFloat, ...] | None = Field(None, description="strengths of guidance; default: --cfg")
    schedules: tuple[str, ...] | None = Field(
        None,
        description="guidance by scale: linear, constant, off-after:k; default: --cfg-schedule, and off-after:k for "
        'every k of the second half of the scales; a number for each scale goes in quotes: "0,1,2,0",linear',
    )
    refiner_cfgs: tuple[NonNegativeFloat, ...] | None = Field(
        None, description="strengths of the refiner's guidance; default: --refiner-cfg"
    )
    top_ps: tuple[Share, ...] | None = Field(None, description="values of --top-p; default: --top-p")
    temperature_scales: tuple[PositiveFloat, ...] = Field(
        (1.0, 0.9), description="factors of the temperatures of all scales"
    )
    precisions: tuple[Precision, ...] | None = Field(
        None, description="plain, int8 (CPUs), fp8 (GPUs); default: plain and int8 on CPUs, plain on GPUs"
    )
    reference_draft_steps: PositiveInt | None = Field(
        None,
        description="N of the reference, which decodes as --cfg, --top-k and the like say; default: about 0.7 K",
    )
    repeats: PositiveInt = Field(9, description="timed runs of a candidate in the last round; 2, 4, 8 in those before")
    seed: NonNegativeInt = Field(1, description="seed of the search; choices are confirmed on images of the next one")

    @model_validator(mode="after")
    def check_search(self) -> TuneSpec:
        if self.int8 or self.fp8:
            raise ValueError("expected --precisions int8 or fp8, got --int8 or --fp8: it is one of the things compared")
        if self.first_images is not None and self.first_images > self.images:
            raise ValueError(f"expected --first-images of at most --images {self.images}, got {self.first_images}")
        if unknown := [name for name in self.measures or () if name not in MEASURES]:
            raise ValueError(f"--measures: expected some of {', '.join(MEASURES)}, got {unknown[0]}")
        if self.margins is not None and self.measures is None:
            raise ValueError("expected --measures with --margins, in the same order; got none")
        if self.margins is not None and len(self.margins) != len(self.measures or ()):
            raise ValueError(
                f"expected as many --margins as --measures, got {len(self.margins)} for {len(self.measures or ())}"
            )
        if "cas" in (self.measures or ()) and self.reference is not None:
            raise ValueError("--measures: expected held-out pictures in --data for cas, got --reference")
        if empty := [name for name in AXES.values() if getattr(self, name) == ()]:
            raise ValueError(f"{flag_of(empty[0])}: expected one value or more, got none")
        return self


def run(spec: TuneSpec) -> dict[str, Any]:
    """Search, confirm, and write OUT/tuned.json, .md and .png."""
    tuner = Tuner(spec)
    say(f"reference: {tuner.reference.words}; {len(tuner.candidates)} candidates")
    standings = race(tuner.candidates, tuner.trials, tuner.margins, tuner.rounds, spec.repeats)
    confirmed = tuner.confirm(standings)
    return report(result_of(tuner.outcome(standings, confirmed), tuner.quality, tuner.trials), spec.out)


class Tuner:
    """Models, candidates, and what is measured of them."""

    def __init__(self, spec: TuneSpec):
        self.spec = spec
        models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights)
        least = max(2, models.drafter_config.num_classes)
        first_images = min(spec.images, spec.first_images or max(least, spec.images // 8))
        self.rounds = rounds_of(first_images, spec.images)
        plain = Subject(spec, first_images)
        on_gpu = plain.device.type == "cuda"
        precisions: Sequence[Precision] = spec.precisions or (("plain",) if on_gpu else ("plain", "int8"))
        subjects: dict[Precision, Subject] = {"plain": plain}
        for precision in precisions:
            if precision != "plain":
                subjects[precision] = Subject(spec.model_copy(update={precision: True}), first_images)
        own = plain.sampling
        self.reference = Candidate(self.reference_steps(plain), own)
        try:
            candidates = grid(
                own,
                plain.scales,
                plain.steps,
                spec.cfgs or (own.cfg,),
                spec.schedules or default_schedules(own.cfg_schedule, plain.scales),
                spec.refiner_cfgs or (own.refiner_cfg,),
                spec.top_ps or (own.top_p,),
                spec.temperature_scales,
                precisions,
            )
        except InputError as error:
            name, _, problem = str(error).partition(":")
            raise InputError(f"{flag_of(AXES.get(name, name))}:{problem}", error.hint) from None
        known = self.reference.key(plain.scales)
        self.candidates = [one for one in candidates if one.key(plain.scales) != known]
        if not self.candidates:
            raise InputError(f"expected settings besides the reference, {self.reference.words}; got none")
        self.quality = Quality(plain, spec)
        measures = spec.measures or (("frechet", "agreement") if self.quality.knows_classes else ("frechet",))
        given = spec.margins or tuple(MEASURES[name].margin for name in measures)
        self.margins: Mapping[str, float] = dict(zip(measures, given, strict=True))
        self.trials = SubjectTrials(subjects, self.quality, self.reference, measures)

    def reference_steps(self, plain: Subject) -> int:
        """N of the reference. InputError, naming the flag, if the pyramid does not have it."""
        asked = self.spec.reference_draft_steps
        if asked is None:
            return plain.models.default_draft_steps
        try:
            return plain.pyramid.check_draft_steps(asked)
        except InputError as error:
            raise InputError(f"{flag_of('reference_draft_steps')}:{str(error).partition(':')[2]}") from None

    def confirm(self, standings: Sequence[Standing]) -> list[Confirmation]:
        """The fastest candidates that seem good enough, one after the other until one holds."""
        able = [one for one in standings if not one.left and one.speed_up > 1 and self.promises(one)]
        found: list[Confirmation] = []
        able.sort(key=lambda one: one.speed_up, reverse=True)
        for one in able[: self.spec.tries]:
            say(f"confirming {one.candidate.words}: {self.spec.confirm_images} images of seed {self.spec.seed + 1}")
            losses = self.trials.losses_at(one.candidate, self.spec.confirm_images, self.spec.seed + 1)
            speed = self.trials.speeds_of([one.candidate], f"confirm-{one.candidate.name}", 2 * self.spec.repeats)[0]
            holds = self.within(losses) and speed.speed_up.value > 1
            found.append(Confirmation(one.candidate, losses, speed, holds))
            if found[-1].holds:
                break
        return found

    def promises(self, one: Standing) -> bool:
        """Whether losses as in the search would be within the margins by the narrower intervals of more images."""
        narrower = math.sqrt(one.images / self.spec.confirm_images)
        half = {name: loss.high - loss.value for name, loss in one.losses.items()}
        expected = {name: half[name] * (narrower if MEASURES[name].narrows else 1) for name in half}
        return self.within({name: replace(loss, high=loss.value + expected[name]) for name, loss in one.losses.items()})

    def within(self, losses: Losses) -> bool:
        """Whether the upper ends of all intervals are within the margins."""
        return all(loss.high <= self.margins[name] for name, loss in losses.items())

    def outcome(self, standings: Sequence[Standing], confirmed: Sequence[Confirmation]) -> Outcome:
        """What the report shows."""
        return Outcome(self.reference, self.margins, self.spec.confirm_images, standings, confirmed)
