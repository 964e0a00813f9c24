"""What a user may ask for: the one boundary where input is not trusted.

Every option of a command is a field of one pydantic model, so a flag (--per-class), a key of a YAML file
(per_class, given by --spec) and an environment variable (TANDEM_PER_CLASS) mean the same. A flag wins over the
environment, the environment over the file, the file over the default.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    SettingsConfigDict,
)

from tandem.errors import InputError

ENV_PREFIX = "TANDEM_"
POSITIONAL = get_args(CliPositionalArg[str])[1]
SpecT = TypeVar("SpecT", bound="Spec")


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


@contextmanager
def without_variable(name: str) -> Iterator[None]:
    """Within, a variable of the environment is not set."""
    kept = os.environ.pop(name, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[name] = kept


def as_flags(spec: Spec) -> list[str]:
    """The command line that gives these options, whatever they came from: `parse` of it is the spec again."""
    flags, positional = [], []
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if name == "spec" or value is None or value == field.get_default():
            continue
        flag = "--" + name.replace("_", "-")
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        if POSITIONAL in field.metadata:
            positional.append(text)
        elif isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        else:
            flags += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return [*flags, *positional]


METAVARS = {
    "Path": "PATH",
    "str": "TEXT",
    "int": "N",
    "float": "X",
    "{int,auto}": "N|auto",
    "tuple[float,...]": "X,X",
    "tuple[int,...]": "N,N",
    "tuple[str,...]": "TEXT",
}


def tidy_help(parser: argparse.ArgumentParser) -> None:
    """Say what to type instead of Python's types, and no default where there is none."""
    for action in parser._actions:
        action.help = (action.help or "").replace(" (default: None)", "")
        if isinstance(action.metavar, str):
            action.metavar = METAVARS.get(action.metavar.removeprefix("[").replace("]]", "]"), action.metavar)


def flags_value(source: Any, name: str) -> str | None:
    value = source().get(name)
    return str(value) if value else None


def read_yaml(path: str, spec: type[BaseModel]) -> dict[str, Any]:
    """Options from a YAML file. Raises InputError for a missing file, wrong syntax or an unknown key."""
    values = {str(key).replace("-", "_"): value for key, value in load_yaml("--spec", Path(path)).items()}
    if unknown := sorted(set(values) - set(spec.model_fields)):
        raise InputError(f"--spec: {path} has unknown options {', '.join(unknown)}")
    return values


def load_yaml(flag: str, path: Path) -> dict[Any, Any]:
    """A YAML file of values by name; an empty one has none. Raises InputError naming the flag that it came by."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise InputError(f"{flag}: cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{flag}: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{flag}: expected values by name in {path}, got a {type(values).__name__}")
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
