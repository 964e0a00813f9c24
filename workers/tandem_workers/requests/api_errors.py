"""Errors of the HTTP API, in the form of the OpenAI API: expected and actual value, and when to retry."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tandem.errors import InputError, JobError, OutputError, PictureSizeError, TandemError
from tandem_workers.requests.api_schema import ErrorBody, ErrorDetail, ImageBody
from tandem_workers.requests.foreign import FOREIGN, misspelt
from tandem_workers.requests.stream_schema import ErrorEvent

log = logging.getLogger("ray.serve")
MAX_SHOWN = 80  # characters of a wrong value or name that are shown
MAX_REASONS = 8  # in one message
CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
RETRY_AFTER_S = 5  # where nothing better is known


class ApiError(Exception):
    """An error that is sent to the client. `retry_after_s` becomes the header of a 429 or 503."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after_s = status, param, code, retry_after_s

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return ErrorBody(error=ErrorDetail(message=str(self), type=kind, param=self.param, code=self.code)).model_dump()

    def event(self) -> str:
        """The data of a stream's last event."""
        return ErrorEvent(**self.body()).model_dump_json()

    def response(self) -> JSONResponse:
        headers = {}
        if self.status in (429, 503):
            seconds = RETRY_AFTER_S if self.retry_after_s is None else self.retry_after_s
            headers["Retry-After"] = str(max(1, math.ceil(seconds)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def wrong_value(param: str, expected: str, actual: Any, code: str = "invalid_value", status: int = 400) -> ApiError:
    """An error that names field, expected and actual."""
    return ApiError(status, f"{param}: expected {expected}, got {shown(actual)}", param, code)


def as_api_error(error: Exception) -> ApiError:
    """The error that the client gets: our own errors in full, no details of unexpected ones."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutputError):  # clients should not learn the address of the store
        log.error("the object store failed", exc_info=error)
        return ApiError(503, "the object store did not take the image", code="store_failed", retry_after_s=5)
    if isinstance(error, PictureSizeError):
        return ApiError(413, str(error), str(error).partition(":")[0], "image_too_large")
    if isinstance(error, InputError):
        param, named, _ = str(error).partition(":")
        return ApiError(400, str(error), param if named else None, "invalid_value")
    log.error("a request failed", exc_info=error)
    if isinstance(error, JobError):
        return ApiError(500, str(error), code="decoding_failed")
    return ApiError(500, "the server failed; its log says why", code="server_error")


def shown(value: Any) -> str:
    return cut(repr(value))


def cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def combined(errors: Sequence[ApiError]) -> ApiError:
    """All reasons in one message; status, `param` and code are those of the first."""
    first, more = errors[0], len(errors) - MAX_REASONS
    rest = [f"and {more} more"] if more > 0 else []
    message = "; ".join((*map(str, errors[:MAX_REASONS]), *rest))
    return ApiError(first.status, message, first.param, first.code, first.retry_after_s)


def explained(error: Any, fields: Collection[str] = ImageBody.model_fields) -> ApiError:
    """One validation error of a request with these fields."""
    path = [str(part) for part in error["loc"][1:]]
    param = cut(".".join(path)) or None
    code = CODES.get(error["type"], "invalid_value")
    if not path and isinstance(error.get("input"), bytes):
        message = "body: expected JSON, and Content-Type: application/json"
    elif error["type"] == "json_invalid":
        param, message = None, f"body: expected JSON, {error['ctx']['error']}"
    elif error["type"] == "missing":
        message = f"{param or 'body'}: expected a value, got none"
    elif error["type"] == "extra_forbidden":
        ours = misspelt(path[0], fields)
        unknown = f"unknown parameter; did you mean `{ours}`?" if ours else "unknown parameter"
        message = f"{param}: {FOREIGN.get(path[0], unknown)}"
    else:
        expected = error["msg"].replace("Input should be", "expected").removeprefix("Value error, ")
        message = f"{param or 'body'}: {expected}, got {shown(error['input'])}"
    return ApiError(400, message, param, code)


def unreadable(error: HTTPException, request: Request) -> ApiError:
    """Why a body could not be parsed, from what FastAPI's error was raised from."""
    cause, encoding = error.__cause__, request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        message = f"body: expected JSON without Content-Encoding, got {shown(encoding)}"
    elif isinstance(cause, RecursionError):
        message = "body: expected JSON of few levels, got lists or objects nested too deeply"
    elif isinstance(cause, ValueError) and "digits" in str(cause):
        message = "body: expected JSON with shorter numbers, got an integer of more than 4300 digits"
    else:
        message = "body: expected JSON in UTF-8"
    return ApiError(400, message, code="invalid_json")


def install_handlers(app: FastAPI, problems: Callable[[Request, Mapping[str, Any]], list[ApiError]]) -> None:
    """Every expected error, FastAPI's own included, in one form. `problems` finds more in a body that failed.

    Unexpected ones are answered by `middleware.AnswerFaults`.
    """

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    for kind in (ApiError, TandemError):
        app.add_exception_handler(kind, ours)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # in threads, because looking for a name among a thousand, or for thousands of fields, takes time
        found = await asyncio.to_thread(lambda: [explained(one) for one in error.errors()])
        if isinstance(error.body, dict):
            known = {one.param for one in found}
            more = await asyncio.to_thread(problems, request, error.body)
            found += [one for one in more if one.param not in known]
        return combined(found).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # Starlette's only error: a body that cannot be parsed
            return unreadable(error, request).response()
        path = cut(request.scope["path"])
        response = ApiError(error.status_code, f"{request.method} {path}: {error.detail}").response()
        response.headers.update(error.headers or {})
        return response
