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
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application
from ray.serve.config import ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from tandem.errors import InputError, JobError

POLL_S = 0.2
SLOW_START_S = 30.0
Tell = Callable[[str], None]
LOGS = "its logs are in /tmp/ray/session_latest/logs"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def find_port(host: str, port: int) -> int:
    """The port asked for, or a free one for 0. InputError if somebody listens there already."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        hint = "--port 0 takes a free one" if port else None
        raise InputError(f"--host, --port: cannot listen on {host}:{port}: {error.strerror or error}", hint) from None


@contextmanager
def deployed(
    app: Application, name: str, host: str, port: int, access_log: bool = False, route: str = "/", tell: Tell = print
) -> Iterator[None]:
    """Within, the application runs: all its replicas are up. Afterwards it is gone, however that came about.

    What else Serve does on a cluster that was joined goes on. `tell` hears what holds a slow start up.

    Raises:
        InputError: Serve listens elsewhere on this cluster, or an application of this name runs there.
        JobError: a replica does not come up; with the cause.
    """
    logs = LoggingConfig(enable_access_log=access_log)
    where = ProxyLocation.HeadOnly if host in LOOPBACK else ProxyLocation.EveryNode
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the driver's own; replicas write to files
    try:
        serve.start(proxy_location=where, http_options={"host": host, "port": port}, logging_config=logs)
    except (RuntimeError, TimeoutError) as error:
        raise JobError(f"Ray Serve did not start: {' '.join(str(error).split())}", LOGS) from None
    check_free(name, host, port)
    try:
        try:
            with telling_what_waits(name, tell):
                serve.run(app, name=name, route_prefix=route, logging_config=logs)
        except (RuntimeError, TimeoutError, RayServeException, RayTaskError) as error:
            cause = failed_replica(name) or " ".join(str(error).split())
            raise JobError(f"the endpoint did not come up: {cause}", LOGS) from None
        yield
    except BaseException:
        with suppress(Exception):  # Ray may be gone
            serve.delete(name, _blocking=False)
        raise
    with suppress(TimeoutError):
        serve.delete(name)


def check_free(name: str, host: str, port: int) -> None:
    """InputError unless Serve listens there and has no application of this name."""
    client = _get_global_client()
    assert client is not None  # it has just started
    there = f"{client.http_config.host}:{client.http_config.port}"
    if there != f"{host}:{port}":
        raise InputError(f"--host, --port: expected {there}, as Serve runs on this cluster, got {host}:{port}")
    if name in serve.status().applications:
        hint = "end it first, or serve without --address"
        raise InputError(f"expected no application {name!r} on this cluster, one runs there", hint)


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
    application = serve.status().applications.get(name)
    for deployment, status in (application.deployments if application else {}).items():
        if raised := re.findall(r"^(?:ray\.\S+: )?((?:[\w.]+(?:Error|Exception)): .+)$", status.message, re.M):
            return f"{deployment}: {raised[-1]}"
    return None


def drain(name: str, ingress: str, timeout_s: float) -> None:
    """Let no new work in, and wait until what is in hand is answered."""
    handle = serve.get_deployment_handle(ingress, name)
    until = time.monotonic() + timeout_s
    with suppress(RayError, RayServeException, TimeoutError):  # no ingress answers: nobody is waiting for it
        while any(handle.broadcast("drain").results(timeout_s=10)) and time.monotonic() < until:
            time.sleep(POLL_S)


def metrics_addresses() -> list[str]:
    """Where each node tells Prometheus what it counts."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]


class Signals:
    """SIGINT and SIGTERM: the first one while `serving` ends `wait`; any other one is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.told = self.serving = False

    def wait(self) -> None:
        """Until a signal comes."""
        while not self.told:
            time.sleep(POLL_S)  # an event's lock could be held where the handler wants it

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.serving or self.told:
            raise KeyboardInterrupt
        self.told = True


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
