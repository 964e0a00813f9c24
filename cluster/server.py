"""A Ray Serve application's life: a free port, up, drained, down."""

from __future__ import annotations

import logging
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from tandem.errors import InputError, JobError

POLL_S = 0.2
SLOW_START_S = 30.0
Tell = Callable[[str], None]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def find_port(host: str, port: int) -> int:
    """The port asked for, or a free one for 0. InputError if somebody listens there already."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        hint = "--port 0 takes a free one" if port else None
        raise InputError(f"--host, --port: cannot listen on {host}:{port}: {error.strerror or error}", hint) from None


def start(
    app: Application, name: str, host: str, port: int, access_log: bool = False, route: str = "/", tell: Tell = print
) -> None:
    """Deploy and wait until all replicas run; `tell` hears what holds them up.

    Raises:
        InputError: Serve runs on this cluster already, and listens elsewhere.
        JobError: a replica does not come up; with the cause.
    """
    logs = LoggingConfig(enable_access_log=access_log)
    where = ProxyLocation.HeadOnly if host in LOOPBACK else ProxyLocation.EveryNode
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the driver's own; replicas write to files
    try:
        serve.start(proxy_location=where, http_options={"host": host, "port": port}, logging_config=logs)
        client = _get_global_client()
        assert client is not None  # it has just started
        there = f"{client.http_config.host}:{client.http_config.port}"
        if there != f"{host}:{port}":
            raise InputError(f"--host, --port: expected {there}, as Serve runs on this cluster, got {host}:{port}")
        with telling_what_waits(name, tell):
            serve.run(app, name=name, route_prefix=route, logging_config=logs)
    except RuntimeError as error:
        cause = failed_replica(name) or " ".join(str(error).split())
        serve.shutdown()
        raise JobError(
            f"the endpoint did not come up: {cause}", "its logs are in /tmp/ray/session_latest/logs"
        ) from None


@contextmanager
def telling_what_waits(name: str, tell: Tell) -> Iterator[None]:
    """Within, says what Serve says of deployments that are not up for long: above all, GPUs that are not there."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(SLOW_START_S):
            with suppress(Exception):  # the application is not known yet, or Ray is going down
                for deployment, status in serve.status().applications[name].deployments.items():
                    if status.message:
                        tell(f"waiting for {deployment}: {' '.join(status.message.split())}")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def failed_replica(name: str) -> str | None:
    """What the first unhealthy deployment says of itself, as one line: the last error of its traceback."""
    deployments = serve.status().applications[name].deployments
    for deployment, status in deployments.items():
        if raised := re.findall(r"^(?:ray\.\S+: )?((?:[\w.]+(?:Error|Exception)): .+)$", status.message, re.M):
            return f"{deployment}: {raised[-1]}"
    return None


def drain(name: str, ingress: str, timeout_s: float) -> None:
    """Let no new work in, wait until what is in hand is answered, and take the application down."""
    handle = serve.get_deployment_handle(ingress, name)
    until = time.monotonic() + timeout_s
    while any(handle.broadcast("drain").results(timeout_s=10)) and time.monotonic() < until:
        time.sleep(POLL_S)
    serve.delete(name)  # the rest of Serve goes with Ray, or serves others on the cluster that was joined


def metrics_addresses() -> list[str]:
    """Where each node tells Prometheus what it counts."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]


class Signals:
    """SIGINT and SIGTERM: the first one ends `wait`; any other, and one at another time, is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.waiting = False

    def wait(self) -> None:
        """Until a signal comes."""
        self.waiting = True
        self.told.wait()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.waiting or self.told.is_set():
            raise KeyboardInterrupt
        self.told.set()


@contextmanager
def signals() -> Iterator[Signals]:
    """To be entered after `ray.init`, which puts its own handlers in place."""
    mine = Signals()
    kept = {number: signal.signal(number, mine.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield mine
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
