"""Runs of `tandem generate` on two nodes with two simulated GPUs each, of kinds that labels tell. Run as a program.

In a process of its own, as a cluster cannot be made beside the one that the tests share.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ray.cluster_utils import Cluster
from runs import start

LABEL = "ray.io/accelerator-type"


def run(jobs: list[list[str]], folder: Path) -> dict[str, object]:
    """The nodes' ids by kind, and summary and log of each run."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 0})
    try:
        nodes = {kind: cluster.add_node(num_cpus=1, num_gpus=2, labels={LABEL: kind}) for kind in ("H100", "L20")}
        cluster.wait_for_nodes()
        results = []
        for number, argv in enumerate(jobs):
            log = folder / f"log{number}"
            code = start([*argv, "--address", cluster.address], log).wait(timeout=240)
            lines = log.with_suffix(".out").read_text().splitlines()
            results.append({"code": code, "log": log.read_text(), "summary": json.loads(lines[-1]) if lines else {}})
        return {"nodes": {kind: node.node_id for kind, node in nodes.items()}, "runs": results}
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]), Path(sys.argv[2]))))
