"""The file of `tandem tune`, which `--settings` takes: how to decode, for which weights, and what else was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tandem.errors import InputError
from tandem_cluster.model_files import read_model

VERSION = 1


class Interval(BaseModel):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


class Settings(BaseModel):
    """Options of `generate` and `serve`."""

    model_config = ConfigDict(extra="forbid")

    draft_steps: int
    cfg: float
    cfg_schedule: str
    refiner_cfg: float | None = None
    top_k: int
    top_p: float
    temperatures: list[float]
    int8: bool = False
    fp8: bool = False


class Found(BaseModel):
    """One point of the frontier, or a confirmed one. `loss` by measure: how much worse than the reference."""

    settings: Settings
    loss: dict[str, Interval]
    images: int
    speed_up: Interval


class TunedFile(BaseModel):
    """What is read of the file."""

    tandem_settings: Literal[1]
    weights_sha256: dict[str, str]
    settings: Settings
    margins: dict[str, float]
    confirmed: list[Found]
    frontier: list[Found]
    reference_settings: Settings

    def within(self, loss: float | None) -> dict[int, Settings]:
        """By N the fastest settings that were measured to lose at most `loss` by the measure that ranks, at the upper
        end of the interval; the reference loses nothing. None: the choice alone."""
        if loss is None:
            return {self.settings.draft_steps: self.settings}
        measure = next(iter(self.margins))
        found = {self.reference_settings.draft_steps: self.reference_settings}
        kept = [one for one in (*self.confirmed, *self.frontier) if one.loss[measure].high <= loss]
        for one in sorted(kept, key=lambda one: one.speed_up.value):
            found[one.settings.draft_steps] = one.settings
        return found


def read_tuned(source: str) -> TunedFile:
    """The file. InputError for anything else."""
    return read_model(TunedFile, "--settings", source, "made by: tandem tune")


def tuned_options(source: str, known: Sequence[str]) -> dict[str, Any]:
    """The options that the file sets, of those that a command has."""
    found = read_tuned(source).settings.model_dump(exclude_none=True)
    return {name: value for name, value in found.items() if name in known and value is not False}


def check_weights(source: str, hashes: Mapping[str, str]) -> None:
    """InputError unless the models, sha256 by role, are those that the file was made with."""
    expected = read_tuned(source).weights_sha256
    for role, own in expected.items():
        if (got := hashes.get(role)) != own:
            raise InputError(
                f"--settings: {source} was made for the {role} {own[:12]}, got {(got or 'none')[:12]}",
                "tandem tune measures these models",
            )
