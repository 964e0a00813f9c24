"""Records which process works on which shard, as entries in the key-value store of Ray's GCS.

An entry exists while a process works on a task: a shard, or the loading of an actor's models. The watchdog of a run
measures its age. If an entry exists when its task starts again, its process has died. Ray restarts actors and retries
tasks without limit, so each start of a task counts these deaths.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private import worker
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.experimental import internal_kv

NAMESPACE = b"tandem.ledger"
REPLY_TIMEOUT_S = 10.0
MAX_DEATHS = 3  # of processes that worked on one task
TAIL_LINES, TAIL_BYTES = 5, 4096  # shown of the output of a process that died
LOADING = "loading"  # the stage while an actor starts
WORKER = "worker"  # the task of an entry for the whole run, one for each process that has worked on it


@dataclass(frozen=True)
class Entry:
    """A process and its task. `node`: id of its node; `deaths`: nodes of the processes that died on this task."""

    pool: str
    task: str
    stage: str
    replica: str
    node: str
    pid: int
    deaths: tuple[str, ...] = ()


def gcs_client() -> Any:
    """This process's client of the GCS; None without Ray."""
    return internal_kv.internal_kv_get_gcs_client()


class TaskAttempt:
    """One attempt of a process at a task. Errors of the GCS are ignored: a task must not fail for its entry.

    `given_up` is the reason not to try the task again, if too many processes have died on it.
    """

    def __init__(self, run: str, entry: Entry) -> None:
        self.key, self.entry = f"{run}:{entry.pool}:{entry.task}".encode(), entry
        self.given_up = ""
        if before := self.died_before():
            self.entry = replace(entry, deaths=on_living_nodes((*before.deaths, before.node)))
            if len(self.entry.deaths) >= MAX_DEATHS:
                self.given_up = why_given_up(before, len(self.entry.deaths), entry.node)

    def died_before(self) -> Entry | None:
        """The entry of a process that died before it finished this task, if any."""
        with suppress(RayError):
            if gcs_client() and (value := gcs_client().internal_kv_get(self.key, NAMESPACE, timeout=REPLY_TIMEOUT_S)):
                before = read_entry(value)
                return before if (before.node, before.pid) != (self.entry.node, self.entry.pid) else None
        return None

    def enter(self, stage: str) -> None:
        """Record that a stage begins."""
        self.entry = replace(self.entry, stage=stage)
        if gcs_client():
            with suppress(RayError):
                value = json.dumps(asdict(self.entry)).encode()
                gcs_client().internal_kv_put(self.key, value, True, NAMESPACE, timeout=REPLY_TIMEOUT_S)

    def end(self) -> None:
        if gcs_client():
            with suppress(RayError):
                gcs_client().internal_kv_del(self.key, False, NAMESPACE, timeout=REPLY_TIMEOUT_S)


@dataclass(frozen=True)
class Ledger:
    """The entries of one pool of a run."""

    run: str = ""
    pool: str = ""

    @contextmanager
    def attempt(self, task: str, replica: str) -> Iterator[TaskAttempt]:
        """Context manager: records that this process works on the task."""
        attempt = TaskAttempt(self.run, Entry(self.pool, task, "", replica, this_node(), os.getpid()))
        if self not in registered:
            registered.add(self)
            TaskAttempt(
                self.run, replace(attempt.entry, task=f"{WORKER} {attempt.entry.node} {attempt.entry.pid}")
            ).enter("")
        try:
            yield attempt
        finally:  # exceptions end the attempt too
            attempt.end()

    def loading(self, replica: str) -> AbstractContextManager[TaskAttempt]:
        """`attempt` for the start of an actor, which keeps its id when it is restarted."""
        return self.attempt(f"{LOADING} {actor_id()}", replica)


NO_LEDGER = Ledger()
registered: set[Ledger] = set()  # by this process


def this_node() -> str:
    return str(ray.get_runtime_context().get_node_id()) if gcs_client() else ""


def actor_id() -> str:
    return str(ray.get_runtime_context().get_actor_id()) if gcs_client() else ""


def logs_folder() -> Path:
    node: Any = worker._global_node
    return Path(node.get_logs_dir_path())


def read_entry(value: bytes) -> Entry:
    values = json.loads(value)
    return Entry(**values | {"deaths": tuple(values["deaths"])})


def on_living_nodes(deaths: tuple[str, ...]) -> tuple[str, ...]:
    """Only deaths on nodes that are alive: a process that died with its node was not killed by the task."""
    try:
        nodes = gcs_client().get_all_node_info(timeout=REPLY_TIMEOUT_S).values()
    except RayError:
        return deaths
    alive = {info.node_id.hex() for info in nodes if info.state == GcsNodeInfo.ALIVE}
    return tuple(node for node in deaths if node in alive)


def why_given_up(last: Entry, deaths: int, node: str) -> str:
    """One line: how many processes died, where, and the last output of the last one."""
    lines = last_lines(logs_folder(), last.pid) if last.node == node else []
    output = f"; its last lines: {' | '.join(lines)}" if lines else f"; the logs are on node {last.node[:8]}"
    last_process = f"the last one (process {last.pid} of {last.replica}) in {last.stage}"
    return f"{deaths} processes died at it one after the other, {last_process}{output}"


def last_lines(logs: Path, pid: int) -> list[str]:
    """The last lines that a worker of this node wrote to stderr, or else to stdout."""
    for stream in ("err", "out"):
        for path in logs.glob(f"worker-*-{pid}.{stream}"):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                text = file.read().decode(errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(":")]
            if lines:
                return lines[-TAIL_LINES:]
    return []


def read_entries(client: Any, run: str) -> dict[bytes, Entry]:
    """Entries of all pools of a run, by key. Raises RayError if the GCS does not answer."""
    keys = client.internal_kv_keys(f"{run}:".encode(), NAMESPACE, timeout=REPLY_TIMEOUT_S)
    values = client.internal_kv_multi_get(keys, NAMESPACE, timeout=REPLY_TIMEOUT_S) if keys else {}
    return {key: read_entry(value) for key, value in values.items()}


def clear(client: Any, run: str) -> None:
    """Remove the remaining entries of a run."""
    with suppress(RayError):
        client.internal_kv_del(f"{run}:".encode(), True, NAMESPACE, timeout=REPLY_TIMEOUT_S)


def end_process(pid: int) -> bool:
    """Kill a worker of this node. Returns False if the id belongs to no worker, as it may have been reused."""
    with suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def end_stopped(pids: Sequence[int]) -> list[int]:
    """Kill those workers of this node that are stopped, and return them. SIGKILL ends what is stopped too."""
    stopped = []
    for pid in pids:
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "T" and end_process(pid):
                stopped.append(pid)
    return stopped
