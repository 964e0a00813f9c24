"""A run on two nodes with a simulated GPU each, one of which is lost; another joins. Run as a program.

In a process of its own, as a cluster cannot be made beside the one that the tests share.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster
from runs import committed, start, wait_until


def run(argv: list[str], out: str, log: Path) -> dict[str, float | str]:
    """Do it; seconds to the report that work cannot be placed, and from the new node to the next shard."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        process = start([*argv, "--address", cluster.address], log)
        wait_until(lambda: committed(out) >= 3, "three shards")
        cluster.remove_node(nodes[1], allow_graceful=False)
        lost = time.monotonic()
        wait_until(lambda: "waiting: " in log.read_text(), "the report", 60)
        reported_s = time.monotonic() - lost
        before = committed(out)
        cluster.add_node(num_cpus=1, num_gpus=1)
        recovery_s = wait_until(lambda: committed(out) > before, "a shard after the fault")
        code = process.wait(timeout=180)
        line = next(line for line in log.read_text().splitlines() if line.startswith("waiting: "))
        return {"exit_code": code, "reported_s": reported_s, "recovery_s": recovery_s, "line": line}
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))))
