"""Watches a run for shards that take far too long and processes that die; reports both and replaces hung processes.

To Ray, a process that is stopped or waits forever for a device is alive. How long is too long follows from each stage's
times on the committed shards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tandem_jobs.run.backpressure import Flow, StageState
from tandem_jobs.run.progress import say
from tandem_workers.stages.ledger import (
    LOADING,
    MAX_DEATHS,
    WORKER,
    Entry,
    clear,
    end_process,
    end_stopped,
    read_entries,
)
from tandem_workers.stages.ray_data import Span

CHECK_EVERY_S = 1.0
WRITE, PARTS_OF_WRITE = "write", ("encode", "store")
STORAGE_STAGES = ("read", WRITE)


@dataclass(frozen=True)
class WatchdogLimits:
    """Time limits in seconds of one process at one stage of one shard.

    Attributes:
        warn, replace: (least seconds, multiple of the longest time on a committed shard).
        warn_first, replace_first: limits before the first commit, and while an actor loads: a shard may take an hour,
            and loading may be a download.
        replace_store: least seconds for reading and writing, which wait for a store up to its own time limits.
    """

    warn: tuple[float, float] = (30.0, 5.0)
    replace: tuple[float, float] = (180.0, 20.0)
    warn_first: float = 300.0
    replace_first: float = 4 * 3600.0
    replace_store: float = 900.0

    def of(self, stage: str, longest: float | None, slowest: float) -> tuple[float, float]:
        """(seconds to a warning, when a stopped process is replaced; seconds until any other process is replaced).

        `longest` is the longest time of this stage, `slowest` of all decoding stages, as N may differ between shards.
        """
        if longest is None:
            return self.warn_first, self.replace_first
        (warn_s, warn_times), (replace_s, replace_times) = self.warn, self.replace
        least, most = (self.replace_store, longest) if stage in STORAGE_STAGES else (replace_s, slowest)
        return max(warn_s, warn_times * longest), max(least, replace_times * most)


@dataclass
class Sighting:
    """How long an entry has not changed, by the watchdog's clock, as the clocks of nodes differ."""

    entry: Entry
    seconds: float = 0.0
    warned: bool = False
    ended: int = 0  # times that it tried to end the process


@dataclass
class Idle:
    """How long a stage has had shards in flight without working on any."""

    done: int
    seconds: float = 0.0
    sweeps: int = 0


@dataclass
class Watchdog:
    """Compares running tasks with usual times.

    Attributes:
        read: returns the entries of the run; RpcError if Ray does not answer.
        is_alive: whether a node is alive; Ray itself reassigns the work of lost nodes.
        end: ends the process of an entry.
        sweep: ends those of the given processes that are stopped.
        stages: the stages of the run, as the executor last saw them.
    """

    read: Callable[[], Mapping[bytes, Entry]]
    is_alive: Callable[[str], bool]
    end: Callable[[Entry], object]
    sweep: Callable[[Sequence[Entry]], object]
    stages: Sequence[StageState] = ()
    limits: WatchdogLimits = field(default_factory=WatchdogLimits)
    longest: dict[str, float] = field(default_factory=dict)  # seconds of a stage on one shard
    seen: dict[bytes, Sighting] = field(default_factory=dict)
    idle: dict[str, Idle] = field(default_factory=dict)  # by stage

    def learn(self, spans: Sequence[Span]) -> None:
        """Record the times of a committed shard of full size."""
        took = [(span.stage, span.end_s - span.start_s) for span in spans]
        if parts := [span for span in spans if span.stage in PARTS_OF_WRITE]:
            took.append((WRITE, max(part.end_s for part in parts) - min(part.start_s for part in parts)))
        for stage, seconds in took:
            self.longest[stage] = max(seconds, self.longest.get(stage, 0.0))

    @property
    def slowest(self) -> float:
        """Seconds of the longest stage of any shard, apart from reading and writing."""
        others = (*STORAGE_STAGES, *PARTS_OF_WRITE)
        return max((seconds for stage, seconds in self.longest.items() if stage not in others), default=0.0)

    def check(self, elapsed_s: float) -> None:
        """Check running tasks, `passed_s` seconds after the last check."""
        found = self.read()
        entries = {key: entry for key, entry in found.items() if not entry.task.startswith(WORKER)}
        workers = [entry for entry in found.values() if entry.task.startswith(WORKER)]
        for key in self.seen.keys() - entries.keys():
            del self.seen[key]
        for key, entry in entries.items():
            before = self.seen.get(key)
            if before is None or before.entry != entry:
                self.report_death(before, entry)
                self.seen[key] = Sighting(entry)
            else:
                before.seconds += elapsed_s
                self.check_entry(before)
        at_work = {entry.pool for entry in entries.values()}
        for stage in self.stages:
            mine = [worker for worker in workers if worker.pool == stage.name]
            self.check_idle(stage, stage.name in at_work, mine, elapsed_s)

    def check_idle(self, stage: StageState, at_work: bool, workers: Sequence[Entry], elapsed_s: float) -> None:
        """Look for stopped workers if shards are in flight but none in work: between shards workers have no entry."""
        idle = self.idle.setdefault(stage.name, Idle(stage.done))
        if at_work or not stage.in_flight or stage.missing or stage.done != idle.done:
            self.idle[stage.name] = Idle(stage.done)
            return
        idle.seconds += elapsed_s
        if idle.seconds > self.limits.warn[0] * 2**idle.sweeps:
            idle.sweeps += 1
            self.sweep(workers)

    def report_death(self, before: Sighting | None, entry: Entry) -> None:
        known = len(before.entry.deaths) if before else 0
        if len(entry.deaths) > known and not (before and before.ended):
            say(f"warning: {entry.pool}: a process died at {name(entry)}: {len(entry.deaths)} of {MAX_DEATHS} times")

    def check_entry(self, sighting: Sighting) -> None:
        """Warn once. End a process that exceeds its limit, again if it survives. The limit doubles with each death on
        this shard."""
        entry, longest = sighting.entry, self.longest.get(sighting.entry.stage)
        limits = self.limits.of(entry.stage, longest, self.slowest)
        warn_s, replace_s = (limit * 2 ** len(entry.deaths) for limit in limits)
        usual = f"; the longest so far took {longest:.1f} s" if longest is not None else ""
        line = f"warning: {name(entry)} has been in {entry.stage} for {sighting.seconds:.0f} s"
        line += f" (process {entry.pid} of {entry.replica}){usual}"
        if sighting.seconds > replace_s * (sighting.ended + 1) and self.is_alive(entry.node):
            sighting.ended += 1
            say(f"{line}: the process is replaced")
            self.end(entry)
        elif sighting.seconds > warn_s and not sighting.warned and self.is_alive(entry.node):
            sighting.warned = True
            say(line)
            self.sweep([entry])


def name(entry: Entry) -> str:
    return f"an actor of {entry.pool}" if entry.task.startswith(LOADING) else entry.task


def is_alive(node: str) -> bool:
    return any(info["NodeID"] == node and info["Alive"] for info in ray.nodes())


def on_node(function: Callable[..., Any], node: str, *args: object) -> ray.ObjectRef:
    """Run a function on a node. Used to end workers: Ray notices the death, restarts the actor and retries its work."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*args)


class Sweeper:
    """Ends stopped workers through tasks on their nodes, and reports them when the tasks have finished."""

    def __init__(self) -> None:
        self.tasks: list[ray.ObjectRef] = []

    def sweep(self, workers: Sequence[Entry]) -> None:
        for node in {worker.node for worker in workers}:
            pids = sorted(worker.pid for worker in workers if worker.node == node)
            self.tasks.append(on_node(end_stopped, node, pids))

    def report(self) -> None:
        done, self.tasks = ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0) if self.tasks else ([], [])
        for task in done:
            with suppress(RayError):  # the node is lost
                for pid in ray.get(task):
                    say(f"warning: worker process {pid} was stopped (SIGSTOP) and is replaced")


@contextmanager
def watching(flow: Flow, limits: WatchdogLimits) -> Iterator[Watchdog]:
    """Context manager: a watchdog checks the shards of a run."""
    client, sweeper, over = GcsClient(ray.get_runtime_context().gcs_address), Sweeper(), threading.Event()
    watchdog = Watchdog(
        read=lambda: read_entries(client, flow.key),
        is_alive=is_alive,
        end=lambda entry: on_node(end_process, entry.node, entry.pid),
        sweep=sweeper.sweep,
        stages=flow.stages,
        limits=limits,
    )

    def watch() -> None:
        checked_at = time.monotonic()
        while not over.wait(CHECK_EVERY_S):
            elapsed_s, checked_at = time.monotonic() - checked_at, time.monotonic()
            with suppress(RayError):
                watchdog.check(
                    min(elapsed_s, 2 * CHECK_EVERY_S)
                )  # more: this process was stopped, and perhaps all were
                sweeper.report()

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watchdog
    finally:
        over.set()
        thread.join(CHECK_EVERY_S)
        clear(client, flow.key)
