"""JSON files with a pydantic model: profiles and plans."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tandem.errors import InputError
from tandem.user_files import read_text, shown

ModelT = TypeVar("ModelT", bound=BaseModel)


def read_model(model: type[ModelT], flag: str, source: str | Path, hint: str) -> ModelT:
    """Read and validate a file. Raises InputError with one line: flag, file, field, expected and actual value."""
    try:
        text = read_text(source)
    except InputError as error:
        raise InputError(f"{flag}: {error}", hint) from error
    location = f"{flag}: {shown(source)}"
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        raise InputError(f"{location}: not JSON: {problem['ctx']['error']}", hint)
    field = ".".join(map(str, problem["loc"])) or "the whole file"
    if problem["type"] == "value_error":  # of a validator, which says what it got
        raise InputError(f"{location}: {shown(field)}: {shown(problem['ctx']['error'])}", hint)
    message = problem["msg"].replace("Input should be", "expected").replace("Field required", "expected a value")
    got = "none" if problem["type"] == "missing" else shown(repr(problem["input"]), 60)
    raise InputError(f"{location}: {shown(field)}: {shown(message)}, got {got}", hint)
