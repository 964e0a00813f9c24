"""Successive halving: all candidates are measured on few images, the better half on twice as many, and so on.

A candidate is better if no other one is both faster and as good. All are measured on the reference's seeds, so that
losses are paired. Source of the method: Jamieson and Talwalkar, 2016 (arXiv 1502.07943). Theirs ranks by one number,
ours by fronts of two, since the result is a frontier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tandem.metrics import Estimate
from tandem_jobs.run.progress import say
from tandem_jobs.tune.candidates import Candidate

Losses = Mapping[str, Estimate]  # by measure, how much worse than the reference; below 0: better


@dataclass(frozen=True)
class Speed:
    """
    Attributes:
        images_per_s: to pixels; the median of rounds, and their range.
        speed_up: over the reference in the same round.
    """

    images_per_s: Estimate
    speed_up: Estimate


@dataclass
class Standing:
    """What is known of a candidate.

    Attributes:
        images: on which it was measured last.
        left: why it left the race; empty: it did not.
    """

    candidate: Candidate
    images: int = 0
    losses: Losses = field(default_factory=dict)
    speed: Speed | None = None
    left: str = ""

    @property
    def loss(self) -> float:
        """By the first measure, which ranks."""
        return next(iter(self.losses.values())).value

    @property
    def speed_up(self) -> float:
        assert self.speed is not None
        return self.speed.speed_up.value


class Trials(Protocol):
    """Measures candidates beside the reference."""

    def losses(self, candidate: Candidate, images: int) -> Losses:
        """Of the first images of the search's seed."""
        ...

    def speeds(self, candidates: Sequence[Candidate], images: int, repeats: int) -> list[Speed]:
        """Beside the reference, so many times each; `images` names the round."""
        ...


def rounds_of(first_images: int, images: int) -> list[int]:
    """Images of each round: doubled from the first on, and all in the last."""
    found = [first_images]
    while found[-1] * 2 < images:
        found.append(found[-1] * 2)
    return found if found[-1] >= images else [*found, images]


def race(
    candidates: Sequence[Candidate], trials: Trials, margins: Mapping[str, float], rounds: Sequence[int], repeats: int
) -> list[Standing]:
    """Every candidate as it stood when it was measured last; those that have not left have been in all rounds.

    Fewer candidates are timed more often: twice in the first round, `repeats` times in the last.
    """
    standings = [Standing(candidate) for candidate in candidates]
    running = list(standings)
    for place, images in enumerate(rounds):
        last = place + 1 == len(rounds)
        say(f"round {place + 1} of {len(rounds)}: {len(running)} candidates, {images} images each")
        timed = repeats if last else min(repeats, 2 ** (place + 1))
        for one, speed in zip(running, trials.speeds([s.candidate for s in running], images, timed), strict=True):
            one.images, one.speed = images, speed
        for done, one in enumerate(running, 1):
            one.losses = trials.losses(one.candidate, images)
            say(f"{done} of {len(running)}: {one.candidate.words}: {described(one)}")
        running = able(running, margins)
        if not last:
            running = halved(running, most=-(-len(candidates) // 2 ** (place + 1)))
        if not running:
            break
    return standings


def described(one: Standing) -> str:
    losses = ", ".join(f"{name} {loss} worse" for name, loss in one.losses.items())
    return f"{losses}, {one.speed_up:.2f} x as fast"


def able(running: Sequence[Standing], margins: Mapping[str, float]) -> list[Standing]:
    """Those that may be faster than the reference and as good; `left` of the others says why not."""
    for one in running:
        assert one.speed is not None
        worse = [name for name, loss in one.losses.items() if loss.low > margins[name]]
        if worse:
            one.left = f"{worse[0]} is worse by more than {margins[worse[0]]:g}"
        elif one.speed.speed_up.high <= 1:
            one.left = "not faster than the reference"
    return [one for one in running if not one.left]


def halved(running: Sequence[Standing], most: int) -> list[Standing]:
    """The frontier, then the frontier of the others, and so on, up to `most`. Of a frontier for which there is no room
    those that stay are spread over it, from the fastest to the best."""
    stay, kept = list(running), list[Standing]()
    while stay and len(kept) < most:
        front = frontier(stay)
        if len(front) > (room := most - len(kept)):
            places = [round(i * (len(front) - 1) / max(1, room - 1)) for i in range(room)]
            front = [front[place] for place in places]
        kept += front
        stay = [one for one in stay if one not in front]
    for one in stay:
        one.left = "others were faster or better"
    return kept


def frontier(standings: Sequence[Standing]) -> list[Standing]:
    """Those than which no other is both faster and better by the first measure, the fastest first. Of equal ones the
    first."""
    found: list[Standing] = []
    for one in sorted(standings, key=lambda one: (-one.speed_up, one.loss)):
        if not found or one.loss < found[-1].loss:
            found.append(one)
    return found
