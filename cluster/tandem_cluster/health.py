"""Watches the Ray that a session runs on. Ray's own client waits forever, or exits without a message."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private import worker
from ray._raylet import GcsClient  # type: ignore[attr-defined]

CHECK_EVERY_S = 1.0
REPLY_TIMEOUT_S = 5.0
# Counted from the first check without an answer. After 60 s Ray itself exits the process without a message
GCS_SILENCE_S = 40.0
HINT = "committed shards are kept, and the same command resumes from them; Ray's logs are in "


@dataclass
class ClusterHealth:
    """Health of the Ray processes that this process depends on. Times are `time.monotonic` seconds.

    Attributes:
        processes: process ids of Ray's servers on this machine, by name.
        node_is_alive: whether the GCS counts this machine as alive; raises RpcError if the GCS does not answer.
        silent_since: time of the first check without an answer. The last answer would not do: this process may have
            been stopped since (ctrl-Z).
    """

    processes: dict[str, int]
    node_is_alive: Callable[[], bool]
    logs: str = ""  # their folder
    silent_since: float | None = None
    stopped: set[str] = field(default_factory=set)

    def check(self) -> tuple[str | None, list[str]]:
        """The reason why the session is lost (None: it is not), and new warnings."""
        news: list[str] = []
        for name, pid in self.processes.items():
            state = process_state(pid)
            if state in ("", "X", "Z"):
                return f"Ray's {name} on this machine (process {pid}) has ended", news
            if state == "T" and name not in self.stopped:
                news.append(f"warning: Ray's {name} on this machine (process {pid}) is stopped: kill -CONT {pid}")
            (self.stopped.add if state == "T" else self.stopped.discard)(name)
        try:
            alive = self.node_is_alive()
        except ray.exceptions.RpcError:
            now = time.monotonic()
            self.silent_since = now if self.silent_since is None else self.silent_since
            silence = now - self.silent_since
            return (f"Ray's GCS has not answered for {silence:.0f} s" if silence > GCS_SILENCE_S else None), news
        except ray.exceptions.RayError:  # the GCS answered, if only with an error: no reason to end a job
            return None, news
        self.silent_since = None
        return (None if alive else "Ray has declared this machine dead: its raylet did not answer in time"), news


def process_state(pid: int) -> str:
    """State letter of a process in /proc (T: stopped, Z: ended); empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def ray_node() -> Any:
    """Ray's internal object for this node."""
    return worker._global_node


def local_processes() -> dict[str, int]:
    """Process ids of this machine's raylet and, if this process started them, of Ray's other servers."""
    if not Path("/proc/self/stat").exists():
        return {}
    found: dict[str, int] = {}
    node = ray_node()
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect(node.raylet_socket_name)
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        found["raylet"] = struct.unpack("3i", peer)[0]
    for started in node.all_processes.get("gcs_server", []):
        found["GCS"] = started.process.pid
    return {name: pid for name, pid in found.items() if pid and process_state(pid)}  # skip those of other containers


def health_of_session() -> ClusterHealth:
    """Health of the Ray that this process has joined."""
    context = ray.get_runtime_context()
    client, node_id = GcsClient(context.gcs_address), ray.NodeID.from_hex(context.get_node_id())

    def node_is_alive() -> bool:
        return bool(client.check_alive([node_id], timeout=REPLY_TIMEOUT_S)[0])

    return ClusterHealth(local_processes(), node_is_alive, ray_node().get_logs_dir_path())


@contextmanager
def watched() -> Iterator[None]:
    """A context that exits the process with code 1 and one line of reason when Ray is gone.

    It exits at once, because calls into Ray may never return; shards that were not committed are made again.
    """
    health, over = health_of_session(), threading.Event()

    def watch() -> None:
        while not over.wait(CHECK_EVERY_S):
            lost, news = health.check()
            for line in news:
                print(line, file=sys.stderr, flush=True)
            if lost and not over.is_set():
                print(f"error: {lost}\nhint: {HINT}{health.logs}", file=sys.stderr, flush=True)
                with suppress(Exception):
                    ray_node().kill_all_processes(check_alive=False, allow_graceful=False)
                os._exit(1)

    threading.Thread(target=watch, name="health", daemon=True).start()
    try:
        yield
    finally:
        over.set()
