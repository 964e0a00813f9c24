"""Runs of `tandem generate` on two nodes with two simulated GPUs each, of kinds that labels tell. Run as a program.

In a process of its own, as a cluster cannot be made beside the one that the tests share.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout

from ray.cluster_utils import Cluster
from runs import committed, wait_until

from jobs.cli import main

LABEL = "ray.io/accelerator-type"


class TwoNodes:
    """A head without GPUs, and a node of each kind."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
        self.nodes = {kind: self.add(kind) for kind in ("H100", "L20")}
        self.log = io.StringIO()

    def add(self, kind: str):
        return self.cluster.add_node(num_cpus=1, num_gpus=2, labels={LABEL: kind})

    def run(self, argv: list[str]) -> dict[str, object]:
        """Exit code, log and summary of a run, and the nodes that there were when it began."""
        nodes = {kind: node.node_id for kind, node in self.nodes.items()}
        self.log = io.StringIO()
        with redirect_stdout(io.StringIO()) as output, redirect_stderr(self.log):
            code = main([*argv, "--address", self.cluster.address])
        lines = output.getvalue().splitlines()
        summary = json.loads(lines[-1]) if lines else {}
        return {"code": code, "log": self.log.getvalue(), "summary": summary, "nodes": nodes}

    def run_with_loss(self, argv: list[str]) -> dict[str, object]:
        """A run whose refiners' node is lost, and another one joins when the run has said what it waits for.

        Seconds to that, and from the new node to the next shard.
        """
        out = argv[argv.index("--out") + 1]
        found: dict[str, object] = {}

        def strike() -> None:
            wait_until(lambda: committed(out) >= 3, "three shards")
            self.cluster.remove_node(self.nodes["L20"], allow_graceful=False)
            lost = time.monotonic()
            wait_until(lambda: "waiting: " in self.log.getvalue(), "the report", 60)
            found["reported_s"] = time.monotonic() - lost
            before = committed(out)
            self.nodes["L20"] = self.add("L20")
            found["recovery_s"] = wait_until(lambda: committed(out) > before, "a shard after the fault")

        striker = threading.Thread(target=strike)
        striker.start()
        result = self.run(argv)
        striker.join()
        return result | found


def run(jobs: list[list[str]], struck: list[str]) -> dict[str, object]:
    """What became of each job, and of the one whose node is lost."""
    nodes = TwoNodes()
    try:
        nodes.cluster.wait_for_nodes()
        results = [nodes.run(argv) for argv in jobs]
        return {"runs": results, "struck": nodes.run_with_loss(struck), "replacement": nodes.nodes["L20"].node_id}
    finally:
        nodes.cluster.shutdown()


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]), json.loads(sys.argv[2]))))
