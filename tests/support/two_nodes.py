"""Runs of `tandem generate` on two nodes with a simulated GPU each, of kinds that labels tell. Run as a program.

In a process of its own, as a cluster cannot be made beside the one that the tests share.
"""

from __future__ import annotations

import io
import json
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from support.runs import committed, start, wait_until
from tandem_jobs.cli import main

LABEL = "ray.io/accelerator-type"


class TwoNodes:
    """A head without GPUs, and a node of each kind."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
        self.nodes = {kind: self.add(kind) for kind in ("H100", "L20")}
        self.cluster.wait_for_nodes()

    def add(self, kind: str) -> Any:
        return self.cluster.add_node(num_cpus=1, num_gpus=1, labels={LABEL: kind})

    @property
    def ids(self) -> dict[str, str]:
        return {kind: node.node_id for kind, node in self.nodes.items()}

    def run(self, argv: list[str]) -> dict[str, Any]:
        """Exit code, log and summary of a run."""
        with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as log:
            code = main([*argv, "--address", self.cluster.address])
        return {"code": code, "log": log.getvalue(), "summary": summary_of(output.getvalue())}

    def run_with_loss(self, argv: list[str]) -> dict[str, Any]:
        """A run whose refiners' node is lost; another one joins when the run has said what it waits for.

        Seconds to that, and from the new node to the next shard.
        """
        out = argv[argv.index("--out") + 1]
        log = Path(f"{out}.log")
        process = start([*argv, "--address", self.cluster.address], log)
        try:
            wait_until(lambda: committed(out) >= 3, "three shards")
            self.cluster.remove_node(self.nodes["L20"], allow_graceful=False)
            lost = time.monotonic()
            wait_until(lambda: "waiting: " in log.read_text(), "the report", 60)
            reported_s = time.monotonic() - lost
            before = committed(out)
            self.nodes["L20"] = self.add("L20")
            recovery_s = wait_until(lambda: committed(out) > before, "a shard after the fault")
            code = process.wait(timeout=180)
        finally:
            process.kill()
        output = log.with_suffix(".out").read_text()
        found = {"code": code, "log": log.read_text(), "summary": summary_of(output)}
        return found | {"reported_s": reported_s, "recovery_s": recovery_s}


def summary_of(output: str) -> dict[str, Any]:
    """The last line of what a command printed, where it printed one."""
    lines = output.splitlines()
    return json.loads(lines[-1]) if lines else {}


def run(jobs: list[list[str]], struck: list[str]) -> dict[str, Any]:
    """What became of each job, and of the one whose node is lost."""
    nodes = TwoNodes()
    try:
        before = nodes.ids
        found = {"runs": [nodes.run(argv) for argv in jobs], "struck": nodes.run_with_loss(struck)}
        return {**found, "nodes": before, "replacement": nodes.ids["L20"]}
    finally:
        nodes.cluster.shutdown()


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]), json.loads(sys.argv[2]))))
