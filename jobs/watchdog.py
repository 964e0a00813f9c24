"""Shards that take far too long, and processes that die: both are said while a run lasts, and what hangs is replaced.

A process that is stopped or waits for a device that never answers is alive to Ray. Each stage's own seconds, those of
the shards that are committed, say what is too long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RpcError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.progress import say
from workers.ledger import LOADING, MOST_DEATHS, Entry, clear, end_process, read_entries
from workers.records import Span

LOOK_EVERY_S = 1.0
WRITE, PARTS_OF_WRITE = "write", ("encode", "store")
AT_A_STORE = ("read", WRITE)


@dataclass(frozen=True)
class Limits:
    """Seconds after which one process is too long at one stage of one shard.

    Attributes:
        warn, replace: (least seconds, times the longest of the shards that are committed).
        warn_first, replace_first: before there is one, and while an actor loads: a shard takes an hour somewhere,
            and loading may be a download.
        replace_store: least seconds of reading and writing, which wait for a store as long as its own limits say.
    """

    warn: tuple[float, float] = (30.0, 5.0)
    replace: tuple[float, float] = (180.0, 20.0)
    warn_first: float = 300.0
    replace_first: float = 4 * 3600.0
    replace_store: float = 900.0

    def of(self, stage: str, longest: float | None) -> tuple[float, float]:
        """To a warning, when a process that is stopped is replaced, and to the end of any other."""
        if longest is None:
            return self.warn_first, self.replace_first
        (warn_s, warn_times), (replace_s, replace_times) = self.warn, self.replace
        least = self.replace_store if stage in AT_A_STORE else replace_s
        return max(warn_s, warn_times * longest), max(least, replace_times * longest)


@dataclass
class Sighting:
    """How long the watchdog has seen an entry as it is: by its own clock, as those of nodes differ."""

    entry: Entry
    seconds: float = 0.0
    warned: bool = False
    ended: int = 0  # times that the process was to be ended


@dataclass
class Watchdog:
    """Compares what is under way with what is usual.

    Attributes:
        read: the entries of the run; RpcError where Ray does not answer.
        is_alive: whether a node is; what a lost one had in hand is Ray's to give to others.
        end: ends the process of an entry, at once or only if it is stopped.
    """

    read: Callable[[], Mapping[bytes, Entry]]
    is_alive: Callable[[str], bool]
    end: Callable[[Entry, bool], None]
    limits: Limits = field(default_factory=Limits)
    longest: dict[str, float] = field(default_factory=dict)  # seconds of a stage on one shard
    seen: dict[bytes, Sighting] = field(default_factory=dict)

    def learn(self, spans: Sequence[Span]) -> None:
        """Take note of a shard that is committed."""
        took = [(span.stage, span.end_s - span.start_s) for span in spans]
        if parts := [span for span in spans if span.stage in PARTS_OF_WRITE]:
            took.append((WRITE, max(part.end_s for part in parts) - min(part.start_s for part in parts)))
        for stage, seconds in took:
            self.longest[stage] = max(seconds, self.longest.get(stage, 0.0))

    def look(self, passed_s: float) -> None:
        """See what is under way, `passed_s` seconds after the last look."""
        entries = self.read()
        for key in self.seen.keys() - entries.keys():
            del self.seen[key]
        for key, entry in entries.items():
            before = self.seen.get(key)
            if before is None or before.entry != entry:
                self.tell_death(before, entry)
                self.seen[key] = Sighting(entry)
            else:
                before.seconds += passed_s
                self.judge(before)

    def tell_death(self, before: Sighting | None, entry: Entry) -> None:
        known = len(before.entry.deaths) if before else 0
        if len(entry.deaths) > known and not (before and before.ended):
            say(f"warning: {entry.pool}: a process died at {name(entry)}: {len(entry.deaths)} of {MOST_DEATHS} times")

    def judge(self, sighting: Sighting) -> None:
        """Warn once, and end what is beyond its limit, again if that was in vain. Each death before doubles it."""
        entry, longest = sighting.entry, self.longest.get(sighting.entry.stage)
        warn_s, replace_s = (limit * 2 ** len(entry.deaths) for limit in self.limits.of(entry.stage, longest))
        usual = f"; the longest so far took {longest:.1f} s" if longest is not None else ""
        line = f"warning: {name(entry)} has been in {entry.stage} for {sighting.seconds:.0f} s"
        line += f" (process {entry.pid} of {entry.replica}){usual}"
        if sighting.seconds > replace_s * (sighting.ended + 1) and self.is_alive(entry.node):
            sighting.ended += 1
            say(f"{line}: the process is replaced")
            self.end(entry, False)
        elif sighting.seconds > warn_s and not sighting.warned and self.is_alive(entry.node):
            sighting.warned = True
            say(line)
            self.end(entry, True)


def name(entry: Entry) -> str:
    return f"an actor of {entry.pool}" if entry.task.startswith(LOADING) else entry.task


def is_alive(node: str) -> bool:
    return any(info["NodeID"] == node and info["Alive"] for info in ray.nodes())


def end_on_its_node(entry: Entry, if_stopped: bool) -> None:
    """End the process by a task there: Ray sees it die, starts its actor again and repeats what it had in hand."""
    there = NodeAffinitySchedulingStrategy(entry.node, soft=False)
    ray.remote(end_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(entry.pid, if_stopped)


@contextmanager
def watching(run: str, limits: Limits) -> Iterator[Watchdog]:
    """A context in which a watchdog looks after the shards of a run."""
    client = GcsClient(ray.get_runtime_context().gcs_address)
    watchdog, over = Watchdog(lambda: read_entries(client, run), is_alive, end_on_its_node, limits), threading.Event()

    def watch() -> None:
        looked = time.monotonic()
        while not over.wait(LOOK_EVERY_S):
            passed, looked = time.monotonic() - looked, time.monotonic()
            with suppress(RpcError):
                watchdog.look(min(passed, 2 * LOOK_EVERY_S))  # more: this process was stopped, and perhaps all were

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watchdog
    finally:
        over.set()
        thread.join(LOOK_EVERY_S)
        clear(client, run)
