"""Life cycle of a Ray Serve application: find a port, start, drain, stop."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve import Application
from ray.serve.config import ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from tandem.errors import InputError, JobError
from tandem_cluster.serve_variables import CONTROLLER

POLL_S = 0.2
SLOW_START_S = 30.0
Log = Callable[[str], None]
LOGS = "its logs are in /tmp/ray/session_latest/logs"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def find_port(host: str, port: int) -> int:
    """The port asked for, or a free one for 0. Raises InputError if the port is in use."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        hint = "--port 0 takes a free one" if port else None
        raise InputError(f"--host, --port: cannot listen on {host}:{port}: {error.strerror or error}", hint) from None


@contextmanager
def deployed(
    app: Application,
    name: str,
    host: str,
    port: int,
    access_log: bool = False,
    route: str = "/",
    log: Log = print,
    variables: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Context manager: runs the application, with all replicas up on entry, and removes it on exit, errors included.

    Other applications on a cluster that was joined keep running. `log` gets a line when something delays the start.
    `variables` go into the environment of Ray Serve's own processes, unless it runs on the cluster already.

    Raises:
        InputError: Serve listens on another address on this cluster, or an application of this name runs there.
        JobError: a replica does not start; with the cause.
    """
    logs = LoggingConfig(enable_access_log=access_log)
    proxies = ProxyLocation.HeadOnly if host in LOOPBACK else ProxyLocation.EveryNode
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the driver's own; replicas write to files
    try:
        serve.start(
            proxy_location=proxies,
            http_options={"host": host, "port": port},
            logging_config=logs,
            controller_options={"runtime_env": {"env_vars": controller_variables() | dict(variables or {})}},
        )
    except (RuntimeError, TimeoutError, RayActorError) as error:  # RayActorError: a proxy or the controller died
        raise JobError(f"Ray Serve did not start: {' '.join(str(error).split())}", LOGS) from None
    check_free(name, host, port)
    try:
        try:
            with logged_waiting(name, log):
                serve.run(app, name=name, route_prefix=route, logging_config=logs)
        except (RuntimeError, TimeoutError, RayServeException, RayTaskError) as error:
            cause = failed_replica(name) or " ".join(str(error).split())
            raise JobError(f"the endpoint did not start: {cause}", LOGS) from None
        yield
    except BaseException:
        with suppress(Exception):  # Ray may be gone
            serve.delete(name, _blocking=False)
        raise
    with suppress(TimeoutError):
        serve.delete(name)


def controller_variables() -> dict[str, str]:
    """Environment of Ray Serve's controller; variables that are set already keep their values."""
    return {name: os.environ.get(name, value) for name, value in CONTROLLER.items()}


def check_free(name: str, host: str, port: int) -> None:
    """Raise InputError unless Serve listens at this address and has no application of this name."""
    client = _get_global_client()
    assert client is not None  # it has just started
    there = f"{client.http_config.host}:{client.http_config.port}"
    if there != f"{host}:{port}":
        raise InputError(f"--host, --port: expected {there}, as Serve runs on this cluster, got {host}:{port}")
    if name in serve.status().applications:
        hint = "stop it first, or serve without --address"
        raise InputError(f"application {name!r} is already running on this cluster", hint)


@contextmanager
def logged_waiting(name: str, log: Log) -> Iterator[None]:
    """Context manager: logs Serve's messages about deployments that are slow to start, mostly for want of GPUs."""
    over = threading.Event()

    def check() -> None:
        while not over.wait(SLOW_START_S):
            with suppress(Exception):  # the application is not known yet, or Ray is going down
                for deployment, status in serve.status().applications[name].deployments.items():
                    if status.message:
                        log(f"waiting for {deployment}: {' '.join(status.message.split())}")

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def failed_replica(name: str) -> str | None:
    """The first unhealthy deployment and the last error of its traceback, as one line."""
    application = serve.status().applications.get(name)
    for deployment, status in (application.deployments if application else {}).items():
        if raised := re.findall(r"^(?:ray\.\S+: )?((?:[\w.]+(?:Error|Exception)): .+)$", status.message, re.M):
            return f"{deployment}: {raised[-1]}"
    return None


def drain(name: str, ingress: str, timeout_s: float) -> None:
    """Accept no new requests, and wait until those in progress are answered."""
    handle = serve.get_deployment_handle(ingress, name)
    until = time.monotonic() + timeout_s
    with suppress(RayError, RayServeException, TimeoutError):  # no ingress answers: no requests to wait for
        while any(handle.broadcast("drain").results(timeout_s=10)) and time.monotonic() < until:
            time.sleep(POLL_S)


def metrics_addresses() -> list[str]:
    """Addresses at which the nodes export their metrics to Prometheus."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]


class Signals:
    """Handles SIGINT and SIGTERM: the first one while `serving` ends `wait`; any other raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received = self.serving = False

    def wait(self) -> None:
        """Wait until a signal comes."""
        while not self.received:
            time.sleep(POLL_S)  # no threading.Event: the handler could need a lock that this thread holds

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.serving or self.received:
            raise KeyboardInterrupt
        self.received = True


@contextmanager
def signals() -> Iterator[Signals]:
    """Context manager that installs the handlers. Enter it after `ray.init`, which installs its own."""
    mine = Signals()
    kept = {number: signal.signal(number, mine.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield mine
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
