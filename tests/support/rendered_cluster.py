"""A cluster on loopback as a rendered RayCluster describes it: `ray start` once a replica, with the file's own flags.

What only a real cluster has is replaced, and nothing else: GPUs are simulated, ports free ones, folders the test's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.clusters import cluster_of
from support.ports import free_port
from support.runs import wait_until
from support.sources import PYTHONPATH
from tandem_jobs import cli

OPTION = {"mode": "split", "draft_steps": 5, "batch": 8, "drafters": {"h100": 1}, "refiners": {"l40s": 1}}
BIN = Path(sys.executable).parent
STORE_BYTES = 256 << 20  # for every node


def render_small(folder: Path, images: int, dataset: str) -> Path:
    """Files from a plan of one drafter and one refiner of two kinds, for the embedded models."""
    plan = {"request": {"images": images}, "best": OPTION | {"images_per_s": 1.0}}
    (folder / "plan.json").write_text(json.dumps(plan))
    argv = ["cluster", "render", "--plan", str(folder / "plan.json"), "--out", str(folder / "out")]
    assert cli.main([*argv, "--dataset", dataset, "--memory-gib", "8"]) == 0
    return folder / "out"


@dataclass(frozen=True)
class Node:
    """A process of `ray start --block`, and the part of the file that it is a replica of."""

    group: dict[str, Any]
    process: subprocess.Popen[bytes]
    agent: int  # ports
    metrics: int


class RenderedCluster:
    """Nodes by the names of their groups, the head's first; token authentication on, as the file says."""

    def __init__(self, document: dict[str, Any], folder: Path) -> None:
        self.spec, self.folder = cluster_of(document), folder
        self.port, self.dashboard = free_port(), free_port()
        self.short = Path(f"/tmp/tandem-{self.port}")  # session folders hold sockets, whose paths have to be short
        self.nodes: list[Node] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TANDEM_"))}
        assert self.spec["authOptions"] == {"mode": "token"}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
        token |= {"RAY_USAGE_STATS_ENABLED": "0"}
        path = {"PYTHONPATH": PYTHONPATH, "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.environment = kept | token | path | {"RAY_ADDRESS": f"127.0.0.1:{self.port}"}

    def start(self) -> None:
        """All nodes, and wait until the readiness probe of each says yes."""
        self.short.symlink_to(self.folder)
        ports = {"port": str(self.port), "dashboard-port": str(self.dashboard), "dashboard-host": "127.0.0.1"}
        self.start_node(self.spec["headGroupSpec"], ["--head"], ports)
        for group in self.spec["workerGroupSpecs"]:
            for _ in range(group["replicas"]):
                self.start_node(group, [f"--address=127.0.0.1:{self.port}", "--num-gpus=1"], {"num-cpus": "2"})

    def start_node(self, group: dict[str, Any], role: list[str], changed: dict[str, str]) -> None:
        number, agent, metrics = len(self.nodes), free_port(), free_port()
        changed |= {
            "object-store-memory": str(STORE_BYTES),
            "object-spilling-directory": str(self.folder / f"spill{number}"),
            "metrics-export-port": str(metrics),
            "dashboard-agent-listen-port": str(agent),
            "temp-dir": f"{self.short}/{number}",
            "node-ip-address": "127.0.0.1",
        }
        params = group["rayStartParams"] | changed
        labels = ",".join(f"{name}={value}" for name, value in group.get("labels", {}).items())
        flags = [f"--{name}={value}" for name, value in params.items()] + ([f"--labels={labels}"] if labels else [])
        with (self.folder / f"node{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(BIN / "ray"), "start", "--block", *role, *flags],
                stdout=log,
                stderr=log,
                env={name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"},
                start_new_session=True,
            )
        self.nodes.append(Node(group, process, agent, metrics))
        wait_until(lambda: self.is_ready(number), f"node {number}", seconds=180)

    def is_ready(self, number: int) -> bool:
        """Its readiness probe, run as Kubernetes would run it, with this node's ports."""
        node = self.nodes[number]
        assert node.process.poll() is None, (self.folder / f"node{number}.log").read_text()
        (container,) = node.group["template"]["spec"]["containers"]
        probe = [
            part.replace(":52365/", f":{node.agent}/").replace(":8265/", f":{self.dashboard}/")
            for part in container["readinessProbe"]["exec"]["command"]
        ]
        return subprocess.run(probe, env=self.environment, capture_output=True, check=False).returncode == 0

    def run(self, argv: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
        """A command as on the head node."""
        environment = self.environment | variables
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600, check=False)

    def stop(self) -> None:
        """All at once; who does not end soon is killed."""
        processes = [node.process for node in reversed(self.nodes)]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.short.unlink(missing_ok=True)
