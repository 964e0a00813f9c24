"""Forms with files (multipart/form-data) as the values and files of a request."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from tandem_workers.requests.api_errors import ApiError, cut, shown

FORM = "multipart/form-data"
MAX_FIELDS, MAX_FILES = 64, 4
MAX_TEXT = 64 << 10  # bytes of a field, and characters of all, as in a request without files
MAX_FOREIGN = 100  # characters of a field that is not known here, to be read as JSON
CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")


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
    kind, options = parse_options_header(http.headers.get("content-type", ""))
    if kind.decode("latin-1").lower() != FORM:
        raise ApiError(400, f"body: expected {FORM}, got {shown(kind.decode('latin-1'))}", code="invalid_form")
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in CHARSETS:  # it would choose a codec of Python, some of which take very long
        raise ApiError(400, f"body: expected charset=utf-8 or none, got {shown(charset)}", code="invalid_form")
    try:
        sent = (await http.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT)).multi_items()
    except (HTTPException, MultiPartException) as error:
        raise ApiError(
            400, f"body: expected {FORM}, {cut(str(getattr(error, 'detail', error)))}", code="invalid_form"
        ) from None
    texts, found, errors = defaultdict[str, list[str]](list), dict[str, bytes](), list[ApiError]()
    repeated, are_lists = set[str](), set[str]()
    for name, value in sent:
        plain = name.removesuffix("[]")
        if isinstance(value, str):
            texts[plain].append(value)
            are_lists |= {plain} if name.endswith("[]") else set()
        elif plain not in files:
            message = f"{cut(name) or shown(name)}: a file that is not known here"
            errors.append(ApiError(400, message, cut(name), "unknown_parameter"))
        elif plain in found:
            repeated.add(plain)
        elif data := await value.read():
            found[plain] = data
        elif value.filename:
            errors.append(ApiError(400, f"{plain}: the file is empty", plain, "invalid_value"))
    if (length := sum(len(text) for given in texts.values() for text in given)) > MAX_TEXT:
        message = f"body: expected at most {MAX_TEXT} characters in fields, got {length}"
        raise ApiError(413, message, code="body_too_large")
    values = dict[str, Any]()
    for name, given in texts.items():
        if name in files:
            errors.append(ApiError(400, f"{name}: expected a file, got text", name, "invalid_value"))
            continue
        parsed = [parse(text, fields.get(name)) for text in given]
        values[name] = parsed if name in are_lists or len(given) > 1 else parsed[0]
    return Form(values, found, repeated, errors)


def parse(text: str, field: FieldInfo | None) -> Any:
    """A value of a form. What is no JSON stays text, for the check to refuse it."""
    if takes_text(field.annotation) if field is not None else len(text) > MAX_FOREIGN:
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
