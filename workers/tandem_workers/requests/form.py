"""Forms with files (multipart/form-data) as the values and files of a request."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from tandem_workers.requests.api_errors import ApiError, cut, shown

FORM = "multipart/form-data"
MAX_FIELDS, MAX_FILES = 64, 4


@dataclass(frozen=True)
class Form:
    """Attributes:
    values: of fields; numbers, booleans and lists as JSON has them.
    files: bytes of the first file of each field.
    repeated: fields that have several files.
    errors: what could not be used.
    """

    values: dict[str, Any]
    files: dict[str, bytes]
    repeated: set[str]
    errors: list[ApiError]


async def read_form(http: Request, fields: Mapping[str, FieldInfo], files: Mapping[str, str]) -> Form:
    """The form of a request.

    A list is a field `name[]` for each item, or one field of JSON. What is not declared as text is read as JSON.

    Args:
        fields: those that are not files, for their types.
        files: names of those that are.

    Raises ApiError 400 for a body that is no form.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise ApiError(400, f"body: expected {FORM}, got {shown(kind)}", code="invalid_form")
    try:
        sent = (await http.form(max_files=MAX_FILES, max_fields=MAX_FIELDS)).multi_items()
    except (HTTPException, MultiPartException) as error:
        raise ApiError(
            400, f"body: expected {FORM}, {cut(str(getattr(error, 'detail', error)))}", code="invalid_form"
        ) from None
    texts, found, errors = defaultdict[str, list[str]](list), dict[str, bytes](), list[ApiError]()
    repeated = set[str]()
    for name, value in sent:
        plain = name.removesuffix("[]")
        if isinstance(value, str):
            texts[name].append(value)
        elif plain not in files:
            errors.append(ApiError(400, f"{cut(name)}: a file that is not known here", cut(name), "unknown_parameter"))
        elif plain in found:
            repeated.add(plain)
        elif data := await value.read():
            found[plain] = data
        elif value.filename:
            errors.append(ApiError(400, f"{plain}: the file is empty", plain, "invalid_value"))
    values = dict[str, Any]()
    for name, given in texts.items():
        plain = name.removesuffix("[]")
        if plain in files:
            errors.append(ApiError(400, f"{plain}: expected a file, got text", plain, "invalid_value"))
            continue
        parsed = [parse(text, fields.get(plain)) for text in given]
        values[plain] = parsed if name.endswith("[]") or len(given) > 1 else parsed[0]
    return Form(values, found, repeated, errors)


def parse(text: str, field: FieldInfo | None) -> Any:
    """A value of a form. What is no JSON stays text, for the check to refuse it."""
    if field is not None and takes_text(field.annotation):
        return text
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return text


def takes_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return any(isinstance(value, str) for value in get_args(annotation))
    if get_origin(annotation) is list:
        return False
    return annotation is str or any(map(takes_text, get_args(annotation)))
