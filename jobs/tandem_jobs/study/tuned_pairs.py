"""The models that a study of fine-tuning compares, and the settings in which they make images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tandem.config import SamplingConfig
from tandem.errors import InputError
from tandem_jobs.run.progress import say
from tandem_jobs.study.subject import Setting, Subject

EVERY_N = 0  # key of a pair that is for all N
ROLES: tuple[Literal["drafter", "refiner"], ...] = ("drafter", "refiner")


@dataclass(frozen=True)
class Pair:
    """Files in the place of drafter and refiner. None: the model that the study was given."""

    drafter: str | None = None
    refiner: str | None = None


def parse_pairs(flag: str, values: Sequence[str]) -> dict[int, Pair]:
    """["4=a", "b", "5=", "c"] -> {4: Pair(a, b), 5: Pair(None, c)}; a first value without N= is for every N.

    Raises InputError.
    """
    found: dict[int, list[str]] = {}
    for place, value in enumerate(values):
        match = re.match(r"(\d*)=", value)
        if match or not place:
            steps, value = int((match and match[1]) or EVERY_N), value[match.end() if match else 0 :]
            if steps in found:
                raise InputError(f"{flag}: expected each N once, got N = {steps} twice")
            found[steps] = [value]
        else:
            found[steps].append(value)
    for files in found.values():
        if len(files) > 2 or not any(files):
            raise InputError(f"{flag}: expected DRAFTER,REFINER, got {','.join(files) or 'no file'}", HINT)
    if EVERY_N in found and len(found) > 1:
        raise InputError(f"{flag}: expected N= before every pair or before none, got both", HINT)
    return {steps: Pair(*(file or None for file in files)) for steps, files in found.items()}


HINT = "N=DRAFTER,REFINER for one N, N=DRAFTER or N=,REFINER where the other model is unchanged"


def draft_steps_of(asked: Sequence[int] | None, *given: Mapping[int, Pair]) -> tuple[int, ...]:
    """Every N that is studied: those asked for, else those of the pairs. InputError if there are none."""
    named = sorted({steps for pairs in given for steps in pairs} - {EVERY_N})
    if asked is None and not named:
        raise InputError("expected --draft-steps, as no pair is for one N alone")
    if asked is not None and (others := [n for n in named if n not in asked]):
        raise InputError(f"--draft-steps: expected every N of the pairs, got none of {', '.join(map(str, others))}")
    return tuple(sorted(set(asked))) if asked is not None else tuple(named)


class Contestants:
    """The pairs of a kind, such as "tuned", among the models of a subject."""

    def __init__(self, subject: Subject, kind: str, pairs: Mapping[int, Pair]):
        self.subject, self.kind, self.pairs = subject, kind, pairs
        for steps, pair in pairs.items():
            for role in ROLES:
                if (source := getattr(pair, role)) is not None:
                    subject.add(self.role(role, steps), source, role)
                    self.check(self.role(role, steps), steps)

    def check(self, role: str, steps: int) -> None:
        """Say where a file was trained for another N."""
        own = self.subject.fine_tuned[role].draft_steps
        if steps and own not in (None, steps):
            say(f"note: {self.subject.refs[role].label} was fine-tuned for N = {own}, here N = {steps}")

    def role(self, role: str, steps: int) -> str:
        """The name under which a subject knows a model."""
        return f"{self.kind}-{role}-{steps}" if steps else f"{self.kind}-{role}"

    def roles(self, steps: int) -> tuple[str, str] | None:
        """Drafter and refiner at N, in part the unchanged ones; None without a pair for this N."""
        key = steps if steps in self.pairs else EVERY_N
        if key not in self.pairs:
            return None
        own = {role for role, source in vars(self.pairs[key]).items() if source is not None}
        drafter, refiner = (self.role(role, key) if role in own else role for role in ROLES)
        return drafter, refiner

    def setting(self, steps: int, sampling: SamplingConfig | None = None) -> Setting | None:
        """CoDe by the pair at N."""
        if (roles := self.roles(steps)) is None:
            return None
        return Setting(f"{self.kind}-{steps}", ((roles[0], steps), (roles[1], self.subject.scales)), sampling)

    def refiner_alone(self, steps: int) -> Setting | None:
        """Plain VAR of the pair's refiner, if it is one of its own."""
        roles = self.roles(steps)
        if roles is None or roles[1] == "refiner":
            return None
        return Setting(f"{self.kind}-refiner-{steps}", ((roles[1], self.subject.scales),))
