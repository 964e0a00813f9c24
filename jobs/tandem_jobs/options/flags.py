"""A command's flags, made from the fields of its spec: the argparse parser, and descriptions of expected values."""

from __future__ import annotations

import argparse
import difflib
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tandem.errors import InputError

POSITIONAL = "positional"  # in an Annotated type: an argument without a flag
COMMAS = "commas"  # in an Annotated text: values separated by commas, in YAML also a list
LETTERS: dict[type, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
NUMBERS: dict[type, tuple[str, str]] = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}

# Options of earlier versions, and why they were removed
REMOVED = {"compile": "it was removed, as fused kernels and CUDA graphs, the default on GPUs, are faster; leave it out"}


class CommandParser(argparse.ArgumentParser):
    """argparse that raises InputError: one line that says what was expected, and a hint."""

    def __init__(self, prog: str, usage: str, description: str | None, epilog: str):
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
            allow_abbrev=False,
            exit_on_error=False,
            argument_default=argparse.SUPPRESS,
            add_help=False,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(message, f"{self.prog} --help shows every option")


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


@contextmanager
def as_flag() -> Iterator[None]:
    """Context manager: errors that begin with an argument's name begin with its flag instead."""
    try:
        yield
    except InputError as error:
        name, _, problem = str(error).partition(":")
        raise InputError(f"{flag_of(name)}:{problem}", error.hint) from None


def read_flags(parser: argparse.ArgumentParser, spec: type[BaseModel], argv: Sequence[str]) -> dict[str, Any]:
    """Parsed flags by field name: text, lists of text, and booleans. Raises InputError."""
    help_hint = f"{parser.prog} --help shows every option"
    try:
        given, unknown = parser.parse_known_intermixed_args(list(argv))  # options between two arguments
    except argparse.ArgumentError as error:
        flag = (error.argument_name or "").split("/")[0]
        field = spec.model_fields.get(flag.removeprefix("--no-").removeprefix("--").replace("-", "_"))
        if field is None:
            parser.error(str(error))
        if is_flag(field):
            raise InputError(f"{flag}: expected no value, got one", help_hint) from None
        raise InputError(f"{flag}: expected {expected(field)} ({field.description}), got none", help_hint) from None
    if unknown := [word for word in unknown if word != "--"]:
        word = next((word for word in unknown if word.startswith("-")), unknown[0])
        if not word.startswith("-"):
            raise InputError(f"expected only options of {parser.prog}, got {word!r}", help_hint)
        word = word.split("=")[0]
        known = [flag for action in parser._actions for flag in action.option_strings]
        if reason := REMOVED.get(word.removeprefix("--no-").removeprefix("--")):
            raise InputError(f"{word}: {reason}", help_hint)
        close = difflib.get_close_matches(word, known, 1, 0.6)
        hint = f"did you mean {close[0]}?" if close else help_hint
        raise InputError(f"expected an option of {parser.prog}, got {word}", hint)
    found = {name: value for name, value in vars(given).items() if value != []}
    repeated = {name for name, value in found.items() if isinstance(value, list)} - set(positional(spec))
    return found | {name: ",".join(found[name]) for name in repeated}


def positional(spec: type[BaseModel]) -> list[str]:
    return [name for name, field in spec.model_fields.items() if POSITIONAL in field.metadata]


def fill(parser: argparse.ArgumentParser, spec: type[BaseModel], groups: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Add every field of a spec to a parser. `groups` are titles and names of fields, in the order of `--help`."""
    for title, names in groups:
        group = parser.add_argument_group(title)
        for name in names:
            add(group, name, spec.model_fields[name])
    group.add_argument("-h", "--help", action="help", help="show this text")


def add(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    default = None if field.is_required() else field.default
    shown = "" if default in (None, "", (), False) else f" (default: {as_text(default)})"
    help_text = f"{field.description}{shown}".replace("%", "%%")
    if POSITIONAL in field.metadata:
        metavar, several = name.upper(), "*" if is_list(field.annotation) else "?"
        group.add_argument(name, nargs=several, metavar=metavar, help=help_text)
    elif is_flag(field):
        group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, help=help_text)
    else:
        action = "append" if is_list(field.annotation) else "store"
        group.add_argument(flag_of(name), action=action, metavar=metavar_of(field), help=help_text)


def as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def is_flag(field: FieldInfo) -> bool:
    return field.annotation in (bool, bool | None)


def is_list(annotation: Any) -> bool:
    """Whether an option has several values."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return is_list(parts[0])
    return origin in (tuple, list) or (origin in (Union, types.UnionType) and any(map(is_list, parts)))


def leaves(annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[tuple[Any, Sequence[Any]]]:
    """The possible types of one value, each with its bounds; a tuple of words for a Literal."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from leaves(parts[0], [*metadata, *parts[1:]])
    elif origin in (Union, types.UnionType):
        for part in parts:
            yield from () if part is types.NoneType else leaves(part, metadata)
    elif origin in (tuple, list):
        yield from leaves(parts[0], metadata)
    else:
        yield (parts if origin is Literal else annotation), metadata


def metavar_of(field: FieldInfo) -> str:
    """Placeholder of a value in `--help`: N, X, TEXT, PATH, {a,b}, N|auto, X,X."""
    found = [kind for kind, _ in leaves(field.annotation)]
    if len(found) == 1 and isinstance(found[0], tuple):
        return "{" + ",".join(found[0]) + "}"
    one = "|".join("|".join(kind) if isinstance(kind, tuple) else LETTERS[kind] for kind in found)
    return f"{one},{one}" if is_list(field.annotation) else one


def expected(field: FieldInfo) -> str:
    """The expected value in words: 'a whole number above 0, or auto'."""
    several, words = is_list(field.annotation), []
    for kind, metadata in leaves(field.annotation, field.metadata):
        if isinstance(kind, tuple):
            words.append(" or ".join((", ".join(kind[:-1]), kind[-1]) if kind[1:] else kind))
        elif kind is bool:
            words.append("true or false")
        elif kind in NUMBERS:
            words.append(NUMBERS[kind][several] + bounds(metadata))
        else:
            words.append({Path: "a path"}.get(kind, "text"))
    return ", or ".join(words) + ", separated by commas" * several


def bounds(metadata: Sequence[Any]) -> str:
    """' above 0', ' from 1 to 100', '' without bounds."""
    found: dict[str, Any] = {}
    for item in (inner for outer in metadata for inner in getattr(outer, "metadata", [outer])):
        found |= {name: value for name in ("gt", "ge", "lt", "le") if (value := getattr(item, name, None)) is not None}
    if "ge" in found and "le" in found:
        return f" from {found['ge']} to {found['le']}"
    texts = {"gt": "above {}", "ge": "of at least {}", "lt": "below {}", "le": "of at most {}"}
    parts = [text.format(found[name]) for name, text in texts.items() if name in found]
    return " " + " and ".join(parts) if parts else ""
