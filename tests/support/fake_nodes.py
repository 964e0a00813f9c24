"""A cluster on this machine whose nodes come and go as an autoscaler decides. All of its processes are our own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ray._common.network_utils import build_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import AutoscalingCluster
from ray.util import get_node_ip_address

from support.runs import wait_until
from support.s3_server import free_port

HEAD = "ray.head.default"
EMPTY_LISTS = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


class Provider(FakeMultiNodeProvider):
    """Ray's fake nodes, with ids that differ in front, where replicas' names show them."""

    def _next_hex_node_id(self) -> str:
        self._next_node_id += 1
        return f"{self._next_node_id:08}" + "f" * 48


class FakeNodes(AutoscalingCluster):
    """Ray's own test cluster, but for three things.

    The wheel of Ray 2.60 lacks the file that it is configured from; it stops every other Ray of the machine when it
    starts; and it takes fixed ports.
    """

    def __init__(self, folder: Path, types: dict[str, dict[str, Any]], idle_timeout_s: float = 3.0) -> None:
        self.folder = folder
        self.address = build_address(get_node_ip_address(), free_port())
        self.idle_timeout_s = idle_timeout_s
        super().__init__({"CPU": 0, "GPU": 0}, types, autoscaler_v2=True)

    def _generate_config(self, head_resources: dict, worker_node_types: dict, autoscaler_v2: bool = False) -> dict:
        head = {"resources": head_resources, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "fake",
            "max_workers": sum(kind["max_workers"] for kind in worker_node_types.values()),
            "idle_timeout_minutes": self.idle_timeout_s / 60,
            "upscaling_speed": 1.0,
            "head_node_type": HEAD,
            "available_node_types": {**worker_node_types, HEAD: head},
            "provider": {
                "type": "external",
                "module": f"{Provider.__module__}.{Provider.__name__}",
                "gcs_address": self.address,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "auth": {},
            "file_mounts": {},
            **{name: [] for name in EMPTY_LISTS},
        }

    def start(self) -> None:
        config = self.folder / "autoscaling.json"
        config.write_text(json.dumps(self._config))
        temporary = self.folder / "ray"
        host, _, port = self.address.rpartition(":")
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",
            f"--node-ip-address={host}",
        ]
        command += [f"--port={port}", f"--ray-client-server-port={free_port()}", "--num-cpus=0", "--num-gpus=0"]
        command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={temporary}"]
        command += ["--object-store-memory=200000000", f"--autoscaling-config={config}"]
        environment = os.environ | {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        with (self.folder / "ray.log").open("wb") as log:
            self.head = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        wait_until(lambda: "Ray runtime started" in (self.folder / "ray.log").read_text(), "the head")

    def shutdown(self) -> None:
        self.head.terminate()
        self.head.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def nodes(self) -> dict[str, str]:
        """Ids and types of the nodes that answer, but for the head."""
        status = get_cluster_status(self.address)
        alive = (*status.active_nodes, *status.idle_nodes)
        return {node.node_id: node.ray_node_type_name for node in alive if node.node_id != FAKE_HEAD_NODE_ID}

    def of(self, name: str) -> set[str]:
        """Ids of the nodes of a type."""
        return {node for node, kind in self.nodes().items() if kind == name}

    def activity(self, name: str) -> str:
        """What keeps the nodes of a type, and what waits for a place, as the autoscaler sees it."""
        status = get_cluster_status(self.address)
        nodes = (*status.active_nodes, *status.idle_nodes)
        mine = [(node.node_status, node.node_activity) for node in nodes if node.ray_node_type_name == name]
        return f"{mine}, {status.resource_demands.ray_task_actor_demand}"

    def kill(self, node: str) -> None:
        """SIGKILL of a node: its raylet, on which its workers depend."""
        wanted = f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={node}".encode()
        for pid in self.processes():
            program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            if program.endswith(b"/raylet") and wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                return
        raise RuntimeError(f"no raylet of node {node}")

    def processes(self) -> list[int]:
        """What runs in this cluster's folder."""
        mine = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                try:
                    if str(self.folder / "ray").encode() in (folder / "cmdline").read_bytes():
                        mine.append(int(folder.name))
                except OSError:  # it has ended
                    continue
        return mine
