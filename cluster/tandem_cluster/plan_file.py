"""Reads a plan that `tandem plan` printed; `render` makes the files of a cluster from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tandem.errors import InputError
from tandem_cluster.model_files import read_model
from tandem_cluster.nodes import ACCELERATOR_LABEL, Labels

ROLE_LABEL = "tandem/role"  # our own label: one kind of GPU may take both roles, so its kind does not tell them apart
MARKET_LABEL = "ray.io/market-type"
MADE_BY = "made by: tandem plan ... > plan.json"
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,30}[a-z0-9])?$")]
Count = Annotated[int, Field(gt=0, le=100_000)]
Counts = Annotated[dict[Kind, Count], Field(min_length=1)]
Role = Literal["drafter", "refiner", "both"]
Spot = Literal["refiners", "all", "none"]


class PlannedOption(BaseModel):
    """One way to use the GPUs: the fields of `planner.Option` that the files need."""

    model_config = ConfigDict(frozen=True, strict=True)

    mode: Literal["split", "colocated", "mixed"]
    draft_steps: Count
    batch: Count
    drafters: Counts
    refiners: Counts
    both: dict[Kind, Count] = Field(default_factory=dict)
    images_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @property
    def num_drafters(self) -> int:
        return sum(self.drafters.values())

    @property
    def num_both(self) -> int:
        """Colocated replicas of a mixed plan."""
        return sum(self.both.values())

    @property
    def num_refiners(self) -> int:
        return sum(self.refiners.values())


class PlannedRequest(BaseModel):
    """The request that was planned for."""

    model_config = ConfigDict(frozen=True, strict=True)

    images: Annotated[float, Field(gt=0, le=1e9)]


class PlanFile(BaseModel):
    """The plan's line of JSON."""

    model_config = ConfigDict(frozen=True, strict=True)

    request: PlannedRequest
    best: PlannedOption
    runners_up: list[PlannedOption] = Field(default_factory=list)
    settings: dict[int, dict[str, Any]] = Field(default_factory=dict, strict=False)  # by N, of tandem tune

    @property
    def images(self) -> int:
        return math.ceil(self.request.images)

    def option(self, mode: Literal["plan", "split", "colocated", "mixed"]) -> PlannedOption:
        """The best option, overall or of one mode. Raises InputError if the plan has none of that mode."""
        for option in (self.best, *self.runners_up):
            if mode in ("plan", option.mode):
                return option
        raise InputError(f"--mode: expected a plan with a {mode} option, got {self.best.mode} alone", MADE_BY)


def read_plan(path: Path) -> PlanFile:
    """Read a plan file. Raises InputError with one line if it is not what `tandem plan` prints."""
    return read_model(PlanFile, "--plan", path, MADE_BY)


@dataclass(frozen=True)
class Group:
    """Nodes of one kind of GPU, one GPU each, in one role."""

    role: Role
    kind: str
    count: int
    spot: bool

    @property
    def name(self) -> str:
        return f"{self.role}-{self.kind.replace('.', '-')}"

    @property
    def labels(self) -> dict[str, str]:
        """Ray labels of its nodes."""
        market = "spot" if self.spot else "on-demand"
        return {ROLE_LABEL: self.role, ACCELERATOR_LABEL: self.kind.upper(), MARKET_LABEL: market}


def groups_of(option: PlannedOption, spot: Spot) -> list[Group]:
    """The groups of nodes that an option needs, drafters first."""
    if option.mode == "colocated":
        return [Group("both", kind, count, spot == "all") for kind, count in option.drafters.items()]
    return [
        *(Group("drafter", kind, count, spot == "all") for kind, count in option.drafters.items()),
        *(Group("refiner", kind, count, spot != "none") for kind, count in option.refiners.items()),
        *(Group("both", kind, count, spot == "all") for kind, count in option.both.items()),
    ]


def role_selector(role: Role) -> Labels:
    """Labels that a node needs for a role."""
    return {ROLE_LABEL: role}
