"""What a user may ask for: the one boundary where input is not trusted.

Every option of a command is a field of one pydantic model, so a flag (--per-class), a key of a YAML file
(per_class, given by --spec) and an environment variable (TANDEM_PER_CLASS) mean the same. A flag wins over the
environment, the environment over the file, the file over the default.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    SettingsConfigDict,
)

from cluster.plan import PlacementMode
from tandem.errors import InputError
from tandem.images import Codec
from workers.formats import FormatName

ENV_PREFIX = "TANDEM_"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
SpecT = TypeVar("SpecT", bound="Spec")
Share = Annotated[float, Field(ge=0, le=1)]


class Spec(BaseSettings):
    """Base of all commands' options."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        extra="forbid",
    )

    spec: Path | None = Field(None, description="YAML file with any of these options")


class GenerateSpec(Spec):
    """Synthesise a labelled image dataset: drafters make the coarse token maps, refiners the fine ones."""

    out: str = Field(description="folder of the dataset; the same command resumes there")
    classes: str | None = Field(
        None,
        description="which classes: 'all', or names and label numbers and ranges: 'face,flag', '0-99,207'",
    )
    per_class: PositiveInt | None = Field(None, description="images of each class")
    images: PositiveInt | None = Field(None, description="images in all, dealt evenly to the classes")
    labels: str | None = Field(
        None,
        description="file of label rows (.parquet, .csv, .jsonl; local or s3://) instead of --classes: a column "
        "'label' (number) or 'class_name', optionally 'count'; other columns are carried into the output",
    )
    seed: NonNegativeInt = Field(0, lt=2**63, description="the same seed and job give the same images")

    drafter: str = Field("embedded", description="'embedded', a file, an s3:// address, or a preset (d16 to d36)")
    refiner: str = Field("embedded", description="like --drafter; the smaller model")
    vqvae: str = Field("embedded", description="like --drafter; its preset is vae_ch160v4096z32")
    random_weights: bool = Field(False, description="let presets have random weights, to try size and speed")
    draft_steps: int | None = Field(None, description="N: scales made by the drafter, 1 to K - 1; default about 0.7 K")
    cfg: float | None = Field(None, ge=0, description="guidance at the last scale; default: the model's own")
    top_k: NonNegativeInt | None = Field(
        None, description="keep the k likeliest codes, 0 keeps all; default: the model's own"
    )
    top_p: Share | None = Field(None, description="keep codes up to this probability; default: the model's own")
    temperatures: tuple[float, ...] | None = Field(
        None, description="one a scale, the last repeats: 1.1,1.0; default: the model's own"
    )
    batch: PositiveInt = Field(
        32, description="images of one forward; short batches are padded, so it is part of the job"
    )
    dtype: Dtype = Field("auto", description="of weights and activations; auto: bfloat16 on GPUs, float32 on CPUs")
    threads: PositiveInt = Field(
        1, description="CPU threads of each replica; part of the job, as rounding depends on it"
    )

    placement: PlacementMode = Field(
        "auto",
        description="split: drafters and refiners on disjoint GPUs; colocated: both on each GPU; cpu; "
        "auto says what it chose and why",
    )
    drafters: PositiveInt | None = Field(None, description="drafter replicas")
    refiners: PositiveInt | None = Field(None, description="refiner replicas")
    logical_gpus: NonNegativeInt = Field(
        4, description="simulated GPUs offered where the machine has none: pinning as on real ones, CPU speed"
    )
    address: str | None = Field(None, description="Ray cluster to join (also RAY_ADDRESS); default: start Ray here")

    format: FormatName = Field("webdataset", description="layout of the output")
    codec: Codec = Field("png", description="image files; png is exact")
    quality: int = Field(92, ge=1, le=100, description="of jpeg and webp")
    shard_size: PositiveInt | None = Field(
        None, description="images a shard; default: from --batch and the number of images"
    )
    keep_tokens: bool = Field(False, description="write the token ids of every image as well")
    overwrite: bool = Field(False, description="replace a job that stands in --out")

    @model_validator(mode="after")
    def check_rows(self) -> GenerateSpec:
        if self.labels is None:
            if self.classes is None:
                raise ValueError("expected --classes (for example: all) or --labels FILE, got neither")
            if (self.per_class is None) == (self.images is None):
                got = "neither" if self.per_class is None else "both"
                raise ValueError(f"expected either --per-class or --images beside --classes, got {got}")
        elif self.classes or self.per_class or self.images:
            raise ValueError("expected --labels alone, got --classes, --per-class or --images beside it")
        return self


def parse(spec: type[SpecT], argv: Sequence[str], prog: str, epilog: str = "") -> SpecT:
    """Options of a command from its flags, the environment and the file that --spec names.

    `--help` and unknown flags end the process as argparse does (exit codes 0 and 2).
    Raises InputError with one line for every wrong value.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=spec.__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags: CliSettingsSource[Any] = CliSettingsSource(spec, root_parser=parser)
    tidy_help(parser)
    flags = flags(args=list(argv))
    environment = EnvSettingsSource(spec)
    given = InitSettingsSource(spec, {})

    class Bound(spec):  # type: ignore[valid-type, misc]
        """The spec with its sources in order."""

        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, **_: Any) -> tuple[Any, ...]:
            file = flags_value(flags, "spec") or os.environ.get(f"{ENV_PREFIX}SPEC")
            return given, environment, InitSettingsSource(settings_cls, read_yaml(file, spec) if file else {})

    try:
        bound = Bound(_cli_settings_source=flags)
        return spec.model_construct(**{name: getattr(bound, name) for name in spec.model_fields})
    except ValidationError as error:
        raise InputError("\n".join(explain(error, spec)), f"{prog} --help shows every option") from None


METAVARS = {"Path": "PATH", "str": "TEXT", "int": "N", "float": "X", "tuple[float,...]": "X,X", "tuple[int,...]": "N,N"}


def tidy_help(parser: argparse.ArgumentParser) -> None:
    """Say what to type instead of Python's types, and no default where there is none."""
    for action in parser._actions:
        action.help = (action.help or "").replace(" (default: None)", "")
        if isinstance(action.metavar, str):
            action.metavar = METAVARS.get(action.metavar, action.metavar)


def flags_value(source: Any, name: str) -> str | None:
    value = source().get(name)
    return str(value) if value else None


def read_yaml(path: str, spec: type[BaseModel]) -> dict[str, Any]:
    """Options from a YAML file. Raises InputError for a missing file, wrong syntax or an unknown key."""
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except OSError as error:
        raise InputError(f"--spec: cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--spec: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"--spec: expected options by name in {path}, got a {type(values).__name__}")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    if unknown := sorted(set(values) - set(spec.model_fields)):
        raise InputError(f"--spec: {path} has unknown options {', '.join(unknown)}")
    return values


def explain(error: ValidationError, spec: type[BaseModel]) -> list[str]:
    """One line for each wrong value: the flag, what was expected, what came."""
    lines = []
    for problem in error.errors():
        names = [str(part) for part in problem["loc"]]
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        if not names:
            lines.append(message)
            continue
        flag = "--" + names[0].replace("_", "-")
        if problem["type"] == "missing":
            field = spec.model_fields.get(names[0])
            lines.append(f"{flag}: expected a value ({field.description if field else ''}), got none")
        else:
            lines.append(f"{flag}: {message}, got {problem['input']!r}")
    return lines
