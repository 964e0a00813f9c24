"""What a machine can do: seconds per batch of every stage, measured by `tandem profile` or taken from a paper."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from tandem.errors import InputError

StageName = Literal["draft", "refine", "decode", "encode", "store"]
PER_N = ("draft", "refine")  # stages whose time depends on the draft steps
BUILT_IN = "profiles"


class StageTime(BaseModel):
    """One stage on one batch. Encode and store are seconds of one CPU core, the others of one GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: StageName
    draft_steps: PositiveInt | None = None
    batch: PositiveInt
    seconds: Annotated[float, Field(ge=0)]
    memory_bytes: PositiveInt | None = None
    estimated: str | None = Field(default=None, description="how, where it was not measured")

    @model_validator(mode="after")
    def check_draft_steps(self) -> StageTime:
        if (self.draft_steps is not None) != (self.stage in PER_N):
            needs = "needs" if self.stage in PER_N else "has no"
            raise ValueError(f"{self.stage} {needs} draft_steps")
        return self


class Profile(BaseModel):
    """The stage times of one kind of device with one pair of models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Annotated[str, StringConstraints(to_lower=True, strip_whitespace=True, min_length=1)] = Field(
        description="kind of device, as --gpus names it"
    )
    num_scales: PositiveInt
    models: dict[str, str] = Field(default_factory=dict)
    dtype: str = ""
    threads: PositiveInt = 1
    source: str = ""
    memory_bytes: PositiveInt | None = Field(None, description="of the device")
    load_s: dict[str, PositiveFloat] = Field(default_factory=dict)
    stages: tuple[StageTime, ...]
    fid: dict[int, PositiveFloat] = Field(default_factory=dict, description="quality at each N, where known")

    def time(self, stage: StageName, draft_steps: int | None, batch: int) -> StageTime | None:
        """The entry of a stage, None where it was not measured. Times that do not depend on N ignore it."""
        steps = draft_steps if stage in PER_N else None
        found = (t for t in self.stages if (t.stage, t.draft_steps, t.batch) == (stage, steps, batch))
        return next(found, None)

    @property
    def batches(self) -> list[int]:
        """Batch sizes at which both drafting and refining were measured."""
        return sorted({t.batch for t in self.stages if t.stage == "draft"} & self._refined("batch"))

    @property
    def draft_steps(self) -> list[int]:
        """Values of N at which both drafting and refining were measured."""
        drafted = {t.draft_steps for t in self.stages if t.stage == "draft" and t.draft_steps}
        return sorted(drafted & self._refined("draft_steps"))

    def _refined(self, name: str) -> set[int]:
        return {getattr(t, name) for t in self.stages if t.stage == "refine"}


def built_in_profiles() -> list[str]:
    """Names of the profiles that ship with the package."""
    return sorted(p.name.removesuffix(".json") for p in (files("cluster") / BUILT_IN).iterdir())


def read_profile(source: str) -> Profile:
    """A built-in profile by name, or a file. Raises InputError naming what is wrong with it."""
    if source in built_in_profiles():
        text = (files("cluster") / BUILT_IN / f"{source}.json").read_text()
    else:
        try:
            text = Path(source).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(built_in_profiles())
            raise InputError(f"--profile: cannot read {source}: {error}", f"built in: {known}") from error
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(f"--profile: {source}: {where}: {problem['msg']}", "made by: tandem profile") from None


def write_profile(profile: Profile, path: Path) -> None:
    """Indented JSON, written aside and renamed."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(profile.model_dump(mode="json", exclude_none=True), indent=1) + "\n")
    temporary.replace(path)
