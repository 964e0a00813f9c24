"""Errors of the HTTP API, in the form of the OpenAI API: expected and actual value, and when to retry."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tandem.errors import InputError, JobError, OutputError, TandemError
from tandem_workers.endpoint.api_schema import ErrorBody, ErrorDetail

log = logging.getLogger("ray.serve")
MAX_SHOWN = 80  # characters of a wrong value that are shown
CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
DESCRIPTIONS = {
    400: "an invalid value; the message names field, expected and actual value",
    401: "an API key is needed",
    404: "not found",
    405: "method not allowed",
    408: "the body did not come in time",
    413: "the body is too large",
    429: "too many images in flight; Retry-After says when to retry",
    500: "an error of the server",
    503: "loading, draining, or too slow; Retry-After says when to retry",
}


class ApiError(Exception):
    """An error that is sent to the client. `retry_after_s` becomes a header."""

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

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
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
    if isinstance(error, InputError):
        param, named, _ = str(error).partition(":")
        return ApiError(400, str(error), param if named else None, "invalid_value")
    log.error("a request failed", exc_info=error)
    if isinstance(error, JobError):
        return ApiError(500, str(error), code="decoding_failed")
    return ApiError(500, "the server failed; its log says why", code="server_error")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def explain(errors: Sequence[Any]) -> ApiError:
    """All validation errors of a request in one message; `param` is the first field."""
    messages, params = [], []
    for error in errors:
        path = [str(part) for part in error["loc"][1:]]
        param = ".".join(path) or None
        expected = error["msg"].replace("Input should be", "expected").removeprefix("Value error, ")
        if not path and isinstance(error.get("input"), bytes):
            messages.append("body: expected JSON, and Content-Type: application/json")
        elif error["type"] == "json_invalid":
            messages.append(f"body: expected JSON, {error['ctx']['error']}")
            param = None
        elif error["type"] == "missing":
            messages.append(f"{param or 'body'}: expected a value, got none")
        elif error["type"] == "extra_forbidden":
            messages.append(f"{param}: unknown parameter")
        else:
            messages.append(f"{param or 'body'}: {expected}, got {shown(error['input'])}")
        params.append(param)
    return ApiError(400, "; ".join(messages), params[0], CODES.get(errors[0]["type"], "invalid_value"))


def install_handlers(app: FastAPI) -> None:
    """Every error of the app, FastAPI's own included, in one form."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    for kind in (ApiError, TandemError, Exception):
        app.add_exception_handler(kind, ours)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return explain(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # Starlette's only error of a body: not UTF-8
            return ApiError(400, "body: expected JSON in UTF-8", code="invalid_json").response()
        response = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()
        response.headers.update(error.headers or {})
        return response
