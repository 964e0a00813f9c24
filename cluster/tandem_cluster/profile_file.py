"""Profile of a device: seconds per batch of every stage, measured by `tandem profile` or taken from a paper."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from tandem.user_files import write_whole
from tandem_cluster.model_files import read_model

StageName = Literal["draft", "refine", "decode", "encode", "store"]
RoleName = Literal["draft", "refine"]  # refining includes VQVAE decode
PER_N = ("draft", "refine")  # stages whose time depends on the draft steps
MAX_SECONDS = 1e6  # of one batch: eleven days
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Bytes = Annotated[int, Field(gt=0, le=2**50)]
Small = Annotated[int, Field(gt=0, le=65_536)]
BUILT_IN = "profiles"


class StageTime(BaseModel):
    """One stage on one batch. Encode and store are seconds of one CPU core, the others of one GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: StageName
    draft_steps: Small | None = None
    batch: Small
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)]
    memory_bytes: Bytes | None = Field(None, description="peak, with all weights of the role")
    estimated: str | None = Field(default=None, description="how it was estimated, if it was not measured")

    @model_validator(mode="after")
    def check_draft_steps(self) -> StageTime:
        if (self.draft_steps is not None) != (self.stage in PER_N):
            needs = "needs" if self.stage in PER_N else "has no"
            raise ValueError(f"{self.stage} {needs} draft_steps")
        if self.stage in PER_N and not self.seconds:
            raise ValueError(f"{self.stage} needs seconds above 0")
        return self


class CannotTake(BaseModel):
    """A role that does not fit in a device's memory, at one batch size or at any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: RoleName
    batch: Small | None = None
    reason: str


class Profile(BaseModel):
    """The stage times of one kind of device with one pair of models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Annotated[str, StringConstraints(to_lower=True, strip_whitespace=True, min_length=1)] = Field(
        description="kind of device, as --gpus names it"
    )
    num_scales: Small
    models: dict[str, str] = Field(default_factory=dict)
    dtype: str = ""
    threads: Small = 1
    source: str = ""
    memory_bytes: Bytes | None = Field(None, description="that a replica may fill")
    weights_bytes: dict[StageName, Bytes] = Field(default_factory=dict, description="of the model of each stage")
    load_s: dict[str, Seconds] = Field(default_factory=dict)
    stages: tuple[StageTime, ...]
    cannot: tuple[CannotTake, ...] = ()
    fid: dict[int, Seconds] = Field(default_factory=dict, description="quality at each N, where known")

    def time(self, stage: StageName, draft_steps: int | None, batch: int) -> StageTime | None:
        """The time of a stage, None if it was not measured. Stages that do not depend on `draft_steps` ignore it."""
        steps = draft_steps if stage in PER_N else None
        found = (t for t in self.stages if (t.stage, t.draft_steps, t.batch) == (stage, steps, batch))
        return next(found, None)

    @property
    def batches(self) -> list[int]:
        """Batch sizes at which some role was measured."""
        return sorted({t.batch for t in self.stages if t.stage in PER_N})

    @property
    def draft_steps(self) -> list[int]:
        """Values of N at which some role was measured."""
        return sorted({t.draft_steps for t in self.stages if t.draft_steps})

    def knows(self, draft_steps: int, batch: int) -> bool:
        """Whether each role was measured at this N and batch or is known to be impossible."""
        roles: tuple[RoleName, ...] = ("draft", "refine")
        return all(self.time(role, draft_steps, batch) or self.is_impossible(role, batch) for role in roles)

    def is_impossible(self, role: RoleName, batch: int) -> bool:
        """Whether a role was never measured, or did not fit in memory at this batch size."""
        nowhere = all(t.stage != role for t in self.stages)
        return nowhere or any(c.role == role and c.batch in (None, batch) for c in self.cannot)

    def why_not(self, role: RoleName | Literal["both"], draft_steps: int, batch: int) -> str | None:
        """Why a GPU cannot take a role at this N and batch; None if it can."""
        if role == "both":
            apart = self.why_not("draft", draft_steps, batch) or self.why_not("refine", draft_steps, batch)
            return apart or self.memory_shortage(self.bytes_together(draft_steps, batch))
        for c in self.cannot:
            if c.role == role and c.batch in (None, batch):
                return c.reason
        needed: tuple[StageName, ...] = ("draft",) if role == "draft" else ("refine", "decode")
        for stage in needed:
            if (found := self.time(stage, draft_steps, batch)) is None:
                return f"{stage} was not measured at N = {draft_steps}, batch {batch}"
            if shortage := self.memory_shortage(found.memory_bytes):
                return shortage
        return None

    def limits(self, draft_steps: int, batch: int) -> list[str]:
        """The roles that a GPU cannot take at this N and batch, and why."""
        uses: tuple[RoleName | Literal["both"], ...] = ("draft", "refine")
        if not any(self.why_not(role, draft_steps, batch) for role in uses):
            uses = ("both",)
        reasons = {use: self.why_not(use, draft_steps, batch) for use in uses}
        words = {"draft": "draft", "refine": "refine", "both": "hold both models"}
        return [f"{self.kind} (profile {self.name}) cannot {words[u]}: {why}" for u, why in reasons.items() if why]

    def memory_shortage(self, needed: int | None) -> str | None:
        """A message if this many bytes are more than a replica may fill, else None."""
        if needed is None or self.memory_bytes is None or needed <= self.memory_bytes:
            return None
        return f"needs {needed / 1e9:.2f} GB, has {self.memory_bytes / 1e9:.2f} GB"

    def bytes_together(self, draft_steps: int, batch: int) -> int | None:
        """Peak bytes of a GPU that holds all models; None if bytes are not known."""
        stages: tuple[StageName, ...] = ("draft", "refine", "decode")
        peaks = [t.memory_bytes if (t := self.time(s, draft_steps, batch)) else None for s in stages]
        if any(peak is None for peak in peaks) or any(s not in self.weights_bytes for s in stages):
            return None
        draft, refine, decode = (self.weights_bytes[s] for s in stages)
        others = (refine + decode, draft, draft)
        return max(peak + other for peak, other in zip(peaks, others, strict=True) if peak is not None)


def built_in_profiles() -> list[str]:
    """Names of the profiles that ship with the package."""
    return sorted(p.name.removesuffix(".json") for p in (files("tandem_cluster") / BUILT_IN).iterdir())


def read_profile(source: str) -> Profile:
    """A built-in profile by name, or a profile file. Raises InputError that says what is wrong with it."""
    if source in built_in_profiles():
        return Profile.model_validate_json((files("tandem_cluster") / BUILT_IN / f"{source}.json").read_text())
    hint = f"made by: tandem profile; built in: {', '.join(built_in_profiles())}"
    return read_model(Profile, "--profile", source, hint)


def write_profile(profile: Profile, path: Path) -> None:
    """Write indented JSON, or leave the file as it was."""
    write_whole(path, json.dumps(profile.model_dump(mode="json", exclude_none=True), indent=1) + "\n")
