"""Runs in Ray Serve's HTTP proxies, before a request takes a place of the ingress: keys are checked from the headers,
bodies are read whole, connections without a request are closed, and answers keep their form if the ingress dies.

Serve imports `middlewares` by the name in RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which has to be in the environment
of its processes; `tandem serve` sets it where it starts Serve.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tandem_workers.endpoint.keys import key_digests
from tandem_workers.endpoint.middleware import LimitBody, NameRequest, NoSniff, RequireKey, cors_options
from tandem_workers.endpoint.proxy_answers import ProxyAnswers

HOOK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # Ray Serve's
HERE = f"{__name__}.middlewares"
ORIGINS = "TANDEM_PROXY_ORIGINS"  # other sites whose pages may call, separated by spaces
HEADERS_TIMEOUT_S = 10.0


class TimedProtocol(HttpToolsProtocol):
    """HTTP connections that are closed if the head of a request is not complete this long after the connection, or
    after the first byte that follows the last request. Without it uvicorn waits forever.

    A connection that is idle after an answer is closed by Serve's keep-alive limit.
    """

    head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.await_head()

    def data_received(self, data: bytes) -> None:
        if self.head_due is None and self.cycle is not None and self.cycle.response_complete:
            self.await_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self.forget_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.forget_head()
        super().connection_lost(exc)

    def await_head(self) -> None:
        self.head_due = self.loop.call_later(HEADERS_TIMEOUT_S, self.timeout_keep_alive_handler)

    def forget_head(self) -> None:
        if self.head_due is not None:
            self.head_due.cancel()
            self.head_due = None


def middlewares() -> list[Middleware]:
    """For Serve, which wraps its proxy in them: the last is the outermost. Has uvicorn use `TimedProtocol`."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{TimedProtocol.__name__}"
    origins = os.environ.get(ORIGINS, "").split()
    cors = [Middleware(CORSMiddleware, **cors_options(origins))] if origins else []
    return [
        Middleware(ProxyAnswers),
        Middleware(LimitBody),
        Middleware(RequireKey, digests=key_digests()),
        *cors,
        Middleware(NoSniff),
        Middleware(NameRequest),
    ]
