"""The HTTP API with a fake engine behind a real HTTP server: no models, no Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from support.ports import free_port
from tandem_workers.endpoint.api import create_api
from tandem_workers.endpoint.gateway import Gateway

START_S = 60.0


@contextmanager
def listening(gateway: Gateway) -> Iterator[str]:
    """Serve on loopback within the block; yields the address."""
    port = free_port()
    config = uvicorn.Config(create_api(gateway), "127.0.0.1", port, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + START_S
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.force_exit = server.should_exit = True
        thread.join(10)
