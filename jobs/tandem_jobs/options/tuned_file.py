"""The file of `tandem tune`, which `--settings` takes: how to decode, for which weights, and what else was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tandem.config import SamplingConfig, numbers
from tandem.errors import InputError
from tandem.user_files import shown
from tandem.zoo import ROLES
from tandem_cluster.model_files import read_model

VERSION = 1


class Interval(BaseModel):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


class Settings(BaseModel):
    """Options of `generate` and `serve`; None is not given."""

    model_config = ConfigDict(extra="forbid")

    draft_steps: int = Field(ge=1)
    cfg: float | None = None
    cfg_schedule: str
    refiner_cfg: float | None = None
    top_k: int
    top_p: float
    temperatures: tuple[float, ...]
    int8: bool = False
    fp8: bool = False

    @model_validator(mode="after")
    def check_sampling(self) -> Self:
        """ValueError for what `SamplingConfig` does not take, which commands would refuse by names of their options."""
        given = self.model_dump(include=set(SamplingConfig.__dataclass_fields__))
        try:
            SamplingConfig().changed(**given)
        except InputError as error:
            raise ValueError(str(error)) from None
        if self.int8 and self.fp8:
            raise ValueError("expected int8 or fp8, got both")
        return self

    def to_options(self) -> dict[str, Any]:
        """Those that are given."""
        return self.model_dump(exclude_defaults=True)


class Found(BaseModel):
    """Settings that were measured. `loss` by measure: how much worse than the reference; `holds` if on new seeds."""

    settings: Settings
    loss: dict[str, Interval]
    images: int
    speed_up: Interval
    holds: bool | None = None


class TunedFile(BaseModel):
    """What is read of the file."""

    tandem_settings: Literal[1]
    weights_sha256: dict[str, str]
    settings: Settings
    reference_settings: Settings
    margins: dict[str, float] = Field(min_length=1)
    confirmed: list[Found]
    frontier: list[Found]

    @model_validator(mode="after")
    def check_whole(self) -> Self:
        """ValueError unless all roles have weights and all measures a loss."""
        parts: list[tuple[str, Mapping[str, Any], Collection[str]]] = [("weights", self.weights_sha256, ROLES)]
        parts += [("loss", one.loss, self.margins) for one in (*self.confirmed, *self.frontier)]
        for name, values, expected in parts:
            if missing := [key for key in expected if key not in values]:
                raise ValueError(f"{name}: expected {', '.join(expected)}, got no {missing[0]}")
        return self

    def check_scales(self, source: str, num_scales: int) -> None:
        """InputError if some settings are not for models of so many scales."""
        for one in (self.settings, self.reference_settings, *(found.settings for found in self.frontier)):
            try:
                SamplingConfig(cfg_schedule=one.cfg_schedule).strengths(num_scales)
                if one.draft_steps >= num_scales:
                    raise InputError(f"draft_steps: expected 1 to {num_scales - 1}, got {one.draft_steps}")
            except InputError as error:
                raise InputError(f"--settings: {shown(source)}: {error}", "it is for models of other scales") from None

    def for_gpus(self, loss: float | None) -> dict[int, Settings]:
        """By N the fastest settings without int8 that lose at most `loss` by the measure that ranks, and by the others
        at most their margins, at the upper ends of the intervals. The reference loses nothing. What was measured on new
        seeds counts by these alone. `loss` None: the choice alone. InputError if it is in int8."""
        if loss is None:
            if self.settings.int8:
                raise InputError("--settings: expected settings for GPUs, got int8", "tandem tune on a GPU finds some")
            return {self.settings.draft_steps: self.settings}
        most = {**self.margins, next(iter(self.margins)): loss}
        on_new_seeds = [one.settings for one in self.confirmed]
        measured = [*self.confirmed, *(one for one in self.frontier if one.settings not in on_new_seeds)]
        good = [one for one in measured if all(one.loss[name].high <= high for name, high in most.items())]
        ways = [(1.0, self.reference_settings), *((one.speed_up.value, one.settings) for one in good)]
        found: dict[int, tuple[float, Settings]] = {}
        for speed_up, settings in ways:
            if not settings.int8 and speed_up > found.get(settings.draft_steps, (0.0,))[0]:
                found[settings.draft_steps] = speed_up, settings
        return {steps: settings for steps, (_, settings) in found.items()}


def read_tuned(source: str) -> TunedFile:
    """The file. InputError for anything else."""
    return read_model(TunedFile, "--settings", source, "made by: tandem tune")


def tuned_options(source: str, known: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a command takes: those that are given, and below them those that the file sets. Guidance of all
    scales by numbers stands for all of it, a strength for the refiner's too, one precision for the other. InputError
    for a refiner's strength beside numbers of the file."""
    found = read_tuned(source).settings.to_options()
    if "refiner_cfg" in given and not {"cfg", "cfg_schedule"} & given.keys() and numbers(found["cfg_schedule"]):
        has = f"{shown(source)} has strengths of all scales, {found['cfg_schedule']}"
        raise InputError(f"--refiner-cfg: expected --cfg or --cfg-schedule with it: {has}")
    schedule = given.get("cfg_schedule")
    if schedule is not None and numbers(str(schedule).strip("[]")):
        found = without(found, "cfg", "refiner_cfg")
    if "cfg" in given:
        found = without(found, "refiner_cfg", *(["cfg_schedule"] if numbers(found["cfg_schedule"]) else []))
    if {"int8", "fp8"} & given.keys():
        found = without(found, "int8", "fp8")
    return {name: value for name, value in found.items() if name in known} | dict(given)


def without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def check_weights(source: str, hashes: Mapping[str, str]) -> None:
    """InputError unless the models, sha256 by role, are those that the file was made with."""
    expected = read_tuned(source).weights_sha256
    for role, own in expected.items():
        if (got := hashes.get(role)) != own:
            raise InputError(
                f"--settings: {source} was made for the {role} {own[:12]}, got {(got or 'none')[:12]}",
                "tandem tune measures these models",
            )
