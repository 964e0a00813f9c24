"""A run on a cluster that starts without nodes: nodes join, one is lost, another joins, all leave. Run as a program.

In a process of its own, as a cluster cannot be made beside the one that the tests share.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from support.fake_nodes import FakeNodes
from support.runs import committed, start, wait_until
from tandem_cluster.session import open_session
from tandem_jobs.bench.bench_pipeline import Consume, Rows, Simulated
from tandem_jobs.run.make_shards import make_shards
from tandem_jobs.run.pipeline import Pipeline
from tandem_jobs.run.pools import ActorPool
from tandem_jobs.run.start_up import StartUp
from tandem_workers.dataset.shards import PrefixShard, ShardPlan, ShardRows

LABEL = "ray.io/accelerator-type"
KINDS = {"drafter": "H100", "refiner": "L20"}
SLOW_SHARDS = 12
ON = [part for role, kind in KINDS.items() for part in (f"--{role}s-on", f"{LABEL}={kind}")]


def run(argv: list[str], out: str, folder: Path, shards: int) -> dict[str, object]:
    """Do it; which nodes there were, what the run said, and seconds between."""
    resources = {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000}
    kind = {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": 2}
    cluster = FakeNodes(folder, {name: {**kind, "labels": {LABEL: label}} for name, label in KINDS.items()})
    cluster.start()
    try:
        seen = {"start": cluster.nodes()}
        log = folder / "log"
        began = time.monotonic()
        process = start([*argv, *ON, "--address", cluster.address], log)
        wait_until(lambda: bool(cluster.nodes()), "a node")
        first_node_s = time.monotonic() - began
        wait_until(lambda: committed(out) >= 1, "a shard")
        first_shard_s = time.monotonic() - began
        wait_until(lambda: committed(out) >= 10 and len(cluster.nodes()) == 4, "shards, and all nodes")
        seen["full"] = cluster.nodes()
        refiners = {node for node, name in cluster.nodes().items() if name == "refiner"}
        lost = min(refiners)
        cluster.kill(lost)
        before = committed(out)
        killed = time.monotonic()
        wait_until(lambda: bool(cluster.of("refiner") - refiners), "another refiner's node")
        replaced_s = time.monotonic() - killed
        seen["replaced"] = cluster.nodes()
        wait_until(lambda: committed(out) == shards or process.poll() is not None, "the last shard", 240)
        ended = time.monotonic()
        wait_until(lambda: not cluster.nodes(), "no nodes")
        away_s = time.monotonic() - ended
        code = process.wait(timeout=60)
        lines = log.with_suffix(".out").read_text().splitlines()
        return {
            "releases": releases(cluster),
            "code": code,
            "seen": seen,
            "lost": lost,
            "committed_when_lost": before,
            "log": log.read_text(),
            "summary": json.loads(lines[-1]) if lines else {},
            "seconds": {
                "first node": first_node_s,
                "first shard": first_shard_s,
                "replacement": replaced_s,
                "end": ended - began,
                "away": away_s,
            },
        }
    finally:
        cluster.shutdown()


def releases(cluster: FakeNodes) -> list[dict[str, object]]:
    """Runs until a drafter's node went before the end, three at most: Ray keeps one now and then (docs/LOG.md)."""
    found: list[dict[str, object]] = []
    while len(found) < 3 and not (found and found[-1]["early"]):
        wait_until(lambda: not cluster.nodes(), "no nodes")
        found.append(slow_refiner(cluster))
    return found


def slow_refiner(cluster: FakeNodes) -> dict[str, object]:
    """A run whose drafter is done long before its refiner: when its node went, and when the run ended."""
    plan = ShardPlan(SLOW_SHARDS, 1)
    draft, refine = (Simulated(name, s, 0.0, 1, 20, 16) for name, s in (("draft", 0.01), ("refine", 3.0)))
    nodes = {role: ({LABEL: kind},) for role, kind in KINDS.items()}
    pools = [
        ActorPool("draft", ShardRows, [Rows(plan), draft], 1, nodes["drafter"], 1),
        ActorPool("refine", PrefixShard, [refine], 1, nodes["refiner"], 1),
    ]
    gone: list[float] = []
    activity: list[str] = []

    def is_gone() -> bool:
        activity.append(cluster.activity("drafter"))
        return not cluster.of("drafter")

    def watch() -> None:
        wait_until(lambda: bool(cluster.of("drafter")), "a drafter's node")
        wait_until(is_gone, "its end")
        gone.append(time.monotonic() - began)

    began = time.monotonic()
    with open_session(cluster.address, 0, 0):
        watcher = threading.Thread(target=watch)
        watcher.start()
        make_shards(Pipeline(plan, pools, Consume(), 1, 768), list(range(SLOW_SHARDS)), SLOW_SHARDS, 0, StartUp())
        ended = time.monotonic() - began
    watcher.join()
    early = gone[0] < ended - 2
    return {"early": early, "drafter_gone": gone[0], "end": ended, "kept_by": sorted(set(activity[-100:]))}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
