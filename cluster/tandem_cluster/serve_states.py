"""What happens to an endpoint while it serves, in lines: replicas that are lost and replaced, proxies, full disks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ray import serve

from tandem_cluster.health import ray_node

POLL_S = 1.0
EXPLAIN_AFTER_S = 15.0  # a replica that is not replaced after this long gets a line of reason
FULL_BYTES = 1 << 20  # a disk with less free space counts as full
ANSWER_TIMEOUT_S = 5.0
Log = Callable[[str], None]


@dataclass
class ServeStates:
    """Compares states of Ray Serve with those before. Times are `time.monotonic` seconds.

    Attributes:
        log_folder: Ray's logs on this machine.
        down_since: deployments and proxies that are not as they should be, since when.
        explained: those whose reason was said.
    """

    log_folder: str
    down_since: dict[str, float] = field(default_factory=dict)
    explained: set[str] = field(default_factory=set)

    def lines(self, deployments: Mapping[str, Any], proxies: Mapping[str, Any], now: float) -> list[str]:
        """New lines for the states that `serve.status()` returned."""
        found: list[str] = []
        for name, status in deployments.items():
            running = status.replica_states.get("RUNNING", 0)
            lost = f"{name}: a replica is lost, {running} {'runs' if running == 1 else 'run'}; another one starts"
            starting = status.replica_states.get("STARTING", 0)
            cause = "it is still starting" if starting else " ".join(status.message.split())
            is_up = status.status not in ("UNHEALTHY", "DEPLOY_FAILED")
            found += self.change(name, is_up, lost, f"{name}: all replicas run again", cause, now)
        for node, state in proxies.items():
            where = f"the HTTP proxy on node {node[:8]}"
            lost = f"{where} is lost: connections are refused; another one starts"
            found += self.change(where, state in ("HEALTHY", "DRAINING"), lost, f"{where} answers again", "", now)
        return found

    def change(self, name: str, is_up: bool, lost: str, back: str, cause: str, now: float) -> list[str]:
        """The line for one deployment or proxy, if there is something new."""
        if is_up:
            self.explained.discard(name)
            since = self.down_since.pop(name, None)
            return [] if since is None else [f"{back}, after {now - since:.0f} s"]
        if name not in self.down_since:
            self.down_since[name] = now
            return [f"warning: {lost}"]
        lasts_s = now - self.down_since[name]
        if name in self.explained or lasts_s < EXPLAIN_AFTER_S:
            return []
        self.explained.add(name)
        return [f"warning: {name} is not replaced yet, after {lasts_s:.0f} s: {self.reason(cause)}"]

    def reason(self, cause: str) -> str:
        """The most probable reason: a full disk, on which Ray starts no process, or what Ray Serve says."""
        with suppress(OSError):
            disk = os.statvfs(self.log_folder)
            if disk.f_bavail * disk.f_frsize < FULL_BYTES:
                return f"no space is left for Ray's logs in {self.log_folder}; free some"
        return cause or "Ray Serve gives no reason"


def notices_of(name: str, ingress: str) -> dict[str, str]:
    """What the ingresses have noted, by keys."""
    answers = serve.get_deployment_handle(ingress, name).broadcast("notices").results(timeout_s=ANSWER_TIMEOUT_S)
    return {key: text for notices in answers for key, text in notices.items()}


@contextmanager
def states_logged(name: str, ingress: str, log: Log) -> Iterator[None]:
    """Context manager: logs what happens to the replicas of an application, in a thread of its own."""
    over, said = threading.Event(), set[str]()
    states = ServeStates(ray_node().get_logs_dir_path())

    def look() -> None:
        status = serve.status()
        if (application := status.applications.get(name)) is not None:
            for line in states.lines(application.deployments, status.proxies, time.monotonic()):
                log(line)
        for key, text in notices_of(name, ingress).items():
            if key not in said:
                said.add(key)
                log(text)

    def watch() -> None:
        while not over.wait(POLL_S):
            with suppress(Exception):  # no ingress answers now, or Ray is going down
                look()

    thread = threading.Thread(target=watch, name="states", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(ANSWER_TIMEOUT_S)
