"""Specs: validated options of commands, the one boundary where input is not trusted.

Every option of a command is a field of one pydantic model, so a flag (--per-class), a key of a YAML file
(per_class, given by --spec) and an environment variable (TANDEM_PER_CLASS) mean the same: each is taken as the text
that was typed, without YAML's types. A flag overrides the environment, the environment the file, the file the default.
An empty variable, or a YAML key without a value, counts as not given.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from tandem.errors import InputError
from tandem.user_files import check_local, shown
from tandem_jobs.options.flags import (
    COMMAS,
    POSITIONAL,
    REMOVED,
    CommandParser,
    expected,
    fill,
    flag_of,
    is_list,
    leaves,
    read_flags,
)
from tandem_jobs.options.yaml_file import TextLoader, load_yaml
from tandem_workers.storage.layout import MAX_ROWS

ENV_PREFIX = "TANDEM_"
# Errors whose message is our own, or more precise than the field's type
OWN_WORDS = ("value_error", "literal_error", "extra_forbidden")
SpecT = TypeVar("SpecT", bound="Spec")


class Spec(BaseModel):
    """Base of all commands' options."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    needs: ClassVar[dict[str, tuple[str, ...]]] = {}  # name in errors -> options of which one is required

    spec: Path | None = Field(None, description="YAML file with any of these options")

    @field_validator("*")
    @classmethod
    def check_size(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers must be finite and at most the size of the largest job: 10^12 images would exhaust memory."""
        most = 2**63 - 1 if info.field_name == "seed" else MAX_ROWS
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and number > most:
                raise ValueError(f"expected at most {most}")
            if number != number or number == float("-inf"):
                raise ValueError("expected a finite number")
        return value

    @classmethod
    def filled(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values with those that an option of the command stands for. InputError."""
        return given

    @property
    def always_said(self) -> frozenset[str]:
        """Options whose defaults `as_flags` says, too, since another option would set them."""
        return frozenset()

    @classmethod
    def missing(cls, given: Mapping[str, Any]) -> list[str]:
        """The names, for errors, of the required options that are not given."""
        required = [name for name, field in cls.model_fields.items() if field.is_required() and name not in given]
        words = [typed_name(cls, name) for name in required]
        choices = {words: names for base in cls.__mro__ for words, names in vars(base).get("needs", {}).items()}
        return words + [words for words, names in choices.items() if not any(name in given for name in names)]

    @classmethod
    def groups(cls) -> list[tuple[str, list[str]]]:
        """Titles and options for `--help`: required ones, the command's own, shared ones."""
        choices = [name for base in cls.__mro__ for names in vars(base).get("needs", {}).values() for name in names]
        first = [name for name, f in cls.model_fields.items() if f.is_required() or name in choices]
        groups, seen = [("required", first)], set(first)
        for base in cls.__mro__[: cls.__mro__.index(Spec) + 1]:
            own = [name for name in base.__annotations__ if name in cls.model_fields and name not in seen]
            seen |= set(own)  # an option that a command declares anew is its own
            title = {cls: "options", Spec: "all commands"}.get(base, (base.__doc__ or "").split(".")[0].split(":")[0])
            groups.append((title, own))
        return [group for group in groups if group[1]]


def typed_name(spec: type[Spec], name: str) -> str:
    """The name of an option in help and errors."""
    return name.upper() if POSITIONAL in spec.model_fields[name].metadata else flag_of(name)


def parse(spec: type[SpecT], argv: Sequence[str], prog: str, epilog: str = "") -> SpecT:
    """Options of a command from its flags, the environment and the --spec file.

    `--help` prints and exits with 0. Raises InputError with one line for every wrong value.
    """
    parser = make_parser(spec, prog, epilog)
    flags = read_flags(parser, spec, argv)
    variables = {name: os.environ.get(ENV_PREFIX + name.upper()) for name in spec.model_fields}
    given = {name: text for name, text in variables.items() if text} | flags
    if "spec" in given:
        try:
            path = plain(spec.model_fields["spec"], given["spec"])
        except ValueError as error:
            raise InputError(f"--spec: {error}") from None
        given = read_yaml(path, spec) | given
    return check(spec, given, f"{prog} --help shows every option")


def make_parser(spec: type[Spec], prog: str, epilog: str = "") -> CommandParser:
    """The parser of a command, its options in groups."""
    required = [typed_name(spec, name) for name, field in spec.model_fields.items() if field.is_required()]
    words = [f"{word} ..." if word.startswith("--") else word for word in required]
    parser = CommandParser(prog, " ".join([prog, *words, "[OPTIONS]"]), spec.__doc__, epilog)
    fill(parser, spec, spec.groups())
    return parser


def check(spec: type[SpecT], given: Mapping[str, Any], hint: str) -> SpecT:
    """A spec from values by name: text as typed, or values of YAML and JSON. None counts as not given.

    Raises InputError with one line for every wrong value, or one line for all missing ones.
    """
    values, wrong = {}, []
    for name, value in spec.filled(given).items():
        try:
            field = spec.model_fields.get(name)
            if value is not None:
                values[name] = value if field is None else as_value(field, value)
        except ValueError as error:
            wrong.append(f"{flag_of(name)}: {error}")
    if not wrong and (missing := spec.missing(values)):
        about = spec.model_fields.get(missing[0].lstrip("-").replace("-", "_").lower())
        one = f"expected {missing[0]}{f' ({about.description})' if about else ''}, got none"
        raise InputError(one if len(missing) == 1 else f"expected {'; '.join(missing)}; got none of these", hint)
    try:
        if not wrong:
            return spec.model_validate(values)
    except ValidationError as error:
        wrong = explain(error, spec)
    raise InputError("\n".join(wrong), hint)


def as_value(field: FieldInfo, given: Any) -> Any:
    """The value that pydantic checks: text, or a list of texts. Raises ValueError."""
    if isinstance(given, dict):
        raise ValueError(f"expected {expected(field)}, got a mapping")
    several = isinstance(given, list | tuple)
    if is_list(field.annotation):
        items = given if several else split(plain(field, given))
        return [plain(field, item).strip() for item in items]
    if not several:
        return plain(field, given)
    if COMMAS not in field.metadata:
        raise ValueError(f"expected {expected(field)}, got a list")
    return join([plain(field, item).strip() for item in given])


def plain(field: FieldInfo, value: Any) -> str:
    """One value as the text of a flag. Raises ValueError."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float | Path):
        raise ValueError(f"expected {expected(field)}, got a {type(value).__name__}")
    text = str(value)
    if not text:
        raise ValueError(f"expected {expected(field)}, got an empty text")
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"expected text in UTF-8, got {text!a}")
    if any(kind is Path for kind, _ in leaves(field.annotation)):
        check_local(text)
    return text


def split(text: str) -> list[str]:
    """'a, "b,c"' -> a and b,c. Brackets around the whole text are allowed. Raises ValueError."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True))
    except (csv.Error, StopIteration) as error:
        raise ValueError(f"expected values separated by commas, got {text!r} ({error})") from None


def join(values: Sequence[Any]) -> str:
    """The inverse of `split`: values with commas or brackets are quoted."""
    line = io.StringIO()
    brackets = any(str(value).startswith("[") for value in values)
    csv.writer(line, quoting=csv.QUOTE_ALL if brackets else csv.QUOTE_MINIMAL, lineterminator="").writerow(values)
    return line.getvalue()


@contextmanager
def without_variable(name: str) -> Iterator[None]:
    """Context manager that unsets an environment variable."""
    kept = os.environ.pop(name, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[name] = kept


def as_flags(spec: Spec) -> list[str]:
    """The command line of these options, wherever they came from; `parse` turns it into the same spec."""
    flags: list[str] = []
    positional: list[str] = []
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        usual = value == field.get_default() and name not in spec.always_said
        if name == "spec" or value is None or usual:
            continue
        flag = flag_of(name)
        if POSITIONAL in field.metadata:
            positional += map(str, value) if is_list(field.annotation) else [str(value)]
        elif isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        else:
            text = join(value) if is_list(field.annotation) else str(value)
            flags += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return [*flags, *(["--"] if any(text.startswith("-") for text in positional) else []), *positional]


def read_yaml(path: str, spec: type[Spec]) -> dict[str, Any]:
    """Options from a YAML file. Raises InputError for a missing file, wrong syntax or an unknown key."""
    values: dict[str, Any] = {}
    for key, value in load_yaml("--spec", path, TextLoader).items():
        name = str(key).replace("-", "_")
        if name in values:
            raise InputError(f"--spec: {shown(path)}: expected {flag_of(name)} once, got {key!r} as well")
        values[name] = value
    values = {name: value for name, value in values.items() if value is not None}
    if removed := [name for name in values if name in REMOVED and name not in spec.model_fields]:
        raise InputError(f"--spec: {shown(path)}: {removed[0]}: {REMOVED[removed[0]]}")
    if unknown := sorted(set(values) - set(spec.model_fields) | set(values) & {"spec"}):
        raise InputError(f"--spec: {shown(path)} has unknown options {shown(', '.join(unknown))}")
    return values


def explain(error: ValidationError, spec: type[BaseModel]) -> list[str]:
    """One line for each wrong option: the flag, expected and actual value."""
    lines: dict[str, str] = {}
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        field = spec.model_fields.get(name)
        if field is not None and problem["type"] not in OWN_WORDS:
            message = f"expected {expected(field)}"
        lines.setdefault(name or message, f"{flag_of(name)}: {message}, got {problem['input']!r}" if name else message)
    return list(lines.values())
