"""What `tandem tune` writes: the choice, the frontier of speed against quality, and every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tandem.metrics import Estimate
from tandem_jobs.options.tuned_file import VERSION
from tandem_jobs.study.figures import NO_PLOT, can_plot, drawn
from tandem_jobs.study.quality import Quality
from tandem_jobs.study.result import Cell, StudyResult, StudyTable
from tandem_jobs.tune.candidates import Candidate
from tandem_jobs.tune.race import Losses, Speed, Standing, frontier
from tandem_jobs.tune.trials import SubjectTrials


@dataclass(frozen=True)
class Confirmation:
    """A candidate on images that the search has not seen."""

    candidate: Candidate
    losses: Losses
    speed: Speed
    holds: bool


@dataclass(frozen=True)
class Outcome:
    """Of a search."""

    reference: Candidate
    margins: Mapping[str, float]
    confirm_images: int
    standings: Sequence[Standing]
    confirmed: Sequence[Confirmation]

    @property
    def finalists(self) -> list[Standing]:
        """Those that were in all rounds and may be faster and as good."""
        return [one for one in self.standings if not one.left]

    @property
    def chosen(self) -> Confirmation | None:
        """The candidate that held; None: the reference stays."""
        return next((one for one in self.confirmed if one.holds), None)


def result_of(outcome: Outcome, quality: Quality, trials: SubjectTrials) -> StudyResult:
    """Tables, plot and findings."""
    chosen = outcome.chosen.candidate if outcome.chosen else outcome.reference
    work = trials.flops(outcome.reference)
    best = frontier(outcome.finalists)

    def values_of(one: Standing) -> dict[str, Any]:
        assert one.speed is not None
        return {
            "settings": one.candidate.options(),
            "words": one.candidate.words,
            "images": one.images,
            "loss": dict(one.losses),
            "images_per_s": one.speed.images_per_s,
            "speed_up": one.speed.speed_up,
            "work_ratio": trials.flops(one.candidate) / work,
            "left": one.left,
        }

    values = {
        "tandem_settings": VERSION,
        **quality.recipe(),
        "settings": chosen.options(),
        "reference_settings": outcome.reference.options(),
        "margins": dict(outcome.margins),
        "confirmed": [
            {
                "settings": one.candidate.options(),
                "images": outcome.confirm_images,
                "loss": dict(one.losses),
                "images_per_s": one.speed.images_per_s,
                "speed_up": one.speed.speed_up,
                "work_ratio": trials.flops(one.candidate) / work,
                "holds": one.holds,
            }
            for one in outcome.confirmed
        ],
        "frontier": [values_of(one) for one in best],
        "candidates": [values_of(one) for one in outcome.standings],
    }
    tables = [confirmed_table(outcome, quality, trials), frontier_table(outcome, best, quality, trials)]
    pictures = {"tuned": drawn(1, lambda axes: draw(axes, outcome, best, quality), width=6.4)} if can_plot() else {}
    heading = "Settings that are as good and faster"
    lines = findings(outcome, quality, trials)
    return StudyResult("tuned", heading, values, tables, pictures, lines, notes(outcome, quality))


def shown_measure(quality: Quality, measure: str) -> str:
    """A measure's name in tables."""
    return "accuracy score" if measure == "cas" else quality.heading(measure)


def heads_of(outcome: Outcome, quality: Quality) -> list[str]:
    return [f"{shown_measure(quality, measure)}: worse by" for measure in outcome.margins]


def confirmed_table(outcome: Outcome, quality: Quality, trials: SubjectTrials) -> StudyTable:
    """Candidates that were measured on new seeds."""
    work = trials.flops(outcome.reference)
    rows: list[list[Cell]] = [
        [
            one.candidate.words,
            *one.losses.values(),
            one.speed.images_per_s,
            one.speed.speed_up,
            round(work / trials.flops(one.candidate), 3),
            "holds" if one.holds else "does not hold",
        ]
        for one in outcome.confirmed
    ]
    columns = ("settings", *heads_of(outcome, quality), "images/s", "times as fast", "by counted work", "")
    return StudyTable(f"Confirmed on {outcome.confirm_images:,} images of new seeds", columns, rows)


def frontier_table(outcome: Outcome, best: Sequence[Standing], quality: Quality, trials: SubjectTrials) -> StudyTable:
    """Settings than which no other is both faster and better."""
    work = trials.flops(outcome.reference)
    rows: list[list[Cell]] = []
    for one in best:
        assert one.speed is not None
        speed: list[Cell] = [one.speed.images_per_s, one.speed.speed_up, round(work / trials.flops(one.candidate), 3)]
        rows.append([one.candidate.words, *one.losses.values(), *speed, one.images])
    columns = ("settings", *heads_of(outcome, quality), "images/s", "times as fast", "by counted work")
    return StudyTable("Frontier of the search", (*columns, "images"), rows)


def findings(outcome: Outcome, quality: Quality, trials: SubjectTrials) -> list[str]:
    """What was chosen, and by what it holds."""
    chosen = outcome.chosen
    tried = [one for one in outcome.confirmed if one is not chosen]
    failed = f" {len(tried)} faster one{'s' if len(tried) > 1 else ''} did not hold." if tried else ""
    if chosen is None:
        return [f"No faster setting is as good as the reference, {outcome.reference.words}, which stays.{failed}"]
    losses = "; ".join(
        f"{shown_measure(quality, name)} is {loss} worse, at most {outcome.margins[name]:g}"
        for name, loss in chosen.losses.items()
    )
    ratio = trials.flops(outcome.reference) / trials.flops(chosen.candidate)
    return [
        f"Chosen: {chosen.candidate.words}: {chosen.speed.speed_up} times as fast as {outcome.reference.words} "
        f"({ratio:.2f} by counted work).{failed}",
        f"On {outcome.confirm_images:,} images that the search has not seen: {losses}.",
    ]


def notes(outcome: Outcome, quality: Quality) -> list[str]:
    """How to read the numbers."""
    confirmed, features = outcome.confirm_images, len(quality.real.gaussian.mean)
    few = [
        f"{confirmed:,} images are few for {features} features: the Fréchet distance is that of so many images, and "
        "its interval may be too narrow; --confirm-images 10 times the features is better."
    ]
    return [
        f"The reference is {outcome.reference.words}. Losses are paired with it on the same seeds, with 95 % "
        "intervals; below 0 the setting is better. Speed is that of one process from labels to pixels: the median of "
        "rounds in which all take turns with the reference, and their range. Rows of few images have wide intervals, "
        "and the best of many candidates looks better in a search than it is: what was confirmed counts.",
        f"Seed {quality.spec.seed} in the search, {quality.spec.seed + 1} to confirm; classes in turn. "
        f"{quality.sources}",
        *(few if confirmed < 10 * features else []),
        *([] if can_plot() else [NO_PLOT]),
    ]


def draw(axes: Any, outcome: Outcome, best: Sequence[Standing], quality: Quality) -> None:
    """All candidates, the frontier among them, and what was confirmed; the margin as a line."""
    name, margin = next(iter(outcome.margins.items()))

    def points(standings: Sequence[Standing], **style: Any) -> None:
        axes.plot([one.speed_up for one in standings], [one.loss for one in standings], **style)

    points(outcome.standings, marker=".", linestyle="", color="silver", label="candidates, of few images")
    points(best, marker="o", markersize=4, linewidth=1, color="tab:blue", label="frontier of the search")
    for one in outcome.confirmed:
        loss: Estimate = one.losses[name]
        style = {"color": "tab:green" if one.holds else "tab:red", "label": "holds" if one.holds else "does not hold"}
        bars = [[loss.value - loss.low], [loss.high - loss.value]]
        axes.errorbar([one.speed.speed_up.value], [loss.value], yerr=bars, fmt="s", capsize=3, **style)
    axes.plot([1], [0], marker="*", markersize=10, linestyle="", color="black", label="reference")
    axes.axhline(margin, color="black", linestyle="--", linewidth=0.8)
    axes.set(xlabel="times as fast as the reference", ylabel=f"{shown_measure(quality, name)}: worse by")
    axes.legend(fontsize=8)
