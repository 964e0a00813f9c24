"""Times the phases from the start of the command to the first committed shard."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tandem.timing import seconds_by_part
from tandem_jobs.run.outcome import StoredShard
from tandem_workers.dataset.start_times import ReplicaStart, process_began
from tandem_workers.stages.ray_data import Span

Parts = Mapping[str, float]


class StartUp:
    """Moments of a run. `began`: this process started; `entered`: the job was checked."""

    def __init__(self) -> None:
        self.began, self.entered = process_began(), time.time()
        self.joined = self.entered
        self.checks = seconds_by_part()
        self.hash_s = 0.0
        self.replicas: list[ReplicaStart] = []
        self.first: StoredShard | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the command."""
        return time.time() - self.began

    def join(self) -> None:
        """Record that the cluster is up and the weights are hashed."""
        self.joined = time.time()
        self.hash_s = seconds_by_part().get("hash", 0.0) - self.checks.get("hash", 0.0)

    def add(self, shard: StoredShard) -> None:
        """Record a shard, and the replicas whose first shard it was."""
        self.replicas += shard.starts
        if self.first is None or committed_s(shard) < committed_s(self.first):
            self.first = shard

    def summary(self, spans: Sequence[Span]) -> dict[str, object]:
        """`started_at` in seconds since 1970, and the seconds of each phase; empty if no shard was made.

        driver: imports, models and rows checked; cluster: joined or started, while weights are hashed; replicas: placed
        and loaded until one had work; first_shard: from there to the first commit. `start_up_parts_s` splits them.
        """
        stored = [span.end_s for span in spans if span.stage == "store"]
        if not stored:
            return {}
        worked = min(span.start_s for span in spans)
        totals = {
            "driver": self.entered - self.began,
            "cluster": self.joined - self.entered,
            "replicas": worked - self.joined,
            "first_shard": min(stored) - worked,
        }
        parts = {
            "driver": rounded(with_rest(self.checks, totals["driver"])),
            "cluster": rounded({"ray": totals["cluster"] - self.hash_s, "hash": self.hash_s}),
            "replicas": self.replica_parts(),
            "first_shard": rounded(first_shard_parts(self.first, totals["first_shard"]) if self.first else {}),
        }
        return {"started_at": round(self.began, 3), "start_up_s": rounded(totals), "start_up_parts_s": parts}

    def replica_parts(self) -> dict[str, dict[str, dict[str, float]]]:
        """By pool and part: median and maximum over replicas that started before the first commit. Later ones were
        restarted or are on nodes that joined later."""
        pools: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        until = committed_s(self.first) if self.first else 0.0
        for start in (start for start in self.replicas if start.began_s <= until):
            for name, seconds in start.parts(self.joined).items():
                pools[start.pool][name].append(seconds)
        return {
            pool: {name: rounded({"median": median(all_s), "max": max(all_s)}) for name, all_s in parts.items()}
            for pool, parts in pools.items()
        }


def committed_s(shard: StoredShard) -> float:
    return max((span.end_s for span in shard.spans), default=0.0)


def first_shard_parts(shard: StoredShard, total_s: float) -> Parts:
    """Work on the first committed shard, by stage; the rest is waiting and transport."""
    work = dict(shard.seconds)  # draft, refine and decode, as in the manifest
    for span in shard.spans:
        if span.stage in ("encode", "store"):
            work[span.stage] = span.end_s - span.start_s
    return with_rest(work, total_s)


def with_rest(parts: Parts, total_s: float) -> Parts:
    return {**parts, "other": max(0.0, total_s - sum(parts.values()))}


def rounded(parts: Parts) -> dict[str, float]:
    return {name: round(seconds, 2) for name, seconds in parts.items()}


def describe_start(summary: Mapping[str, Any]) -> list[str]:
    """The start-up in two lines: driver and cluster, then replicas and the first shard."""
    totals, parts = summary.get("start_up_s"), summary.get("start_up_parts_s")
    if not totals or not parts:
        return []
    pools = "; ".join(
        f"{pool}: {listed({name: values['max'] for name, values in of.items()})}"
        for pool, of in parts["replicas"].items()
    )
    return [
        f"start: driver {totals['driver']:.1f} s ({listed(parts['driver'])}), "
        f"cluster {totals['cluster']:.1f} s ({listed(parts['cluster'])})",
        f"replicas {totals['replicas']:.1f} s ({pools}), first shard {totals['first_shard']:.1f} s "
        f"({listed(parts['first_shard'])})",
    ]


def listed(parts: Parts) -> str:
    """Parts that round to at least a tenth of a second."""
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items() if seconds >= 0.05)
