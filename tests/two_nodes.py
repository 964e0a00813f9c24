"""Runs of `tandem generate` on two nodes with two simulated GPUs each, of kinds that labels tell. Run as a program.

In a process of its own, as a cluster cannot be made beside the one that the tests share.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

from ray.cluster_utils import Cluster

from jobs.cli import main

LABEL = "ray.io/accelerator-type"


def run(jobs: list[list[str]]) -> dict[str, object]:
    """The nodes' ids by kind, and summary and log of each run."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        nodes = {kind: cluster.add_node(num_cpus=1, num_gpus=2, labels={LABEL: kind}) for kind in ("H100", "L20")}
        cluster.wait_for_nodes()
        results = []
        for argv in jobs:
            with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as log:
                code = main([*argv, "--address", cluster.address])
            lines = output.getvalue().splitlines()
            results.append({"code": code, "log": log.getvalue(), "summary": json.loads(lines[-1]) if lines else {}})
        return {"nodes": {kind: node.node_id for kind, node in nodes.items()}, "runs": results}
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
