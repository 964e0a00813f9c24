"""Memory of the devices that replicas run on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tandem.errors import PlacementError
from tandem_cluster.nodes import ACCELERATOR_LABEL, Node
from tandem_cluster.session import count_real_gpus, living_nodes, open_session

# NVIDIA's driver brings it, and it sees cards that Ray has hidden from this process
NVIDIA_SMI = "nvidia-smi"
QUERY = ("--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits")
# Parts of a card (MIG), such as "MIG 3g.20gb  Device 0: ...", whose names say their memory
MIG_PART = re.compile(r"^\s*MIG \w+\.(\d+)gb\S*\s+Device", re.MULTILINE)
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
TIMEOUT_S = 60
HINT = "give it by --device-memory-gb"


@dataclass(frozen=True)
class Memory:
    """Bytes of each card of a machine and of the machine itself; for several machines, the smallest."""

    cards: tuple[int, ...]
    host: int


def memory_here() -> Memory:
    """Memory of this machine, within the limit of its container."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else ""
    return Memory(cards_here(), min(host, int(limit)) if limit.isdigit() else host)


def cards_here() -> tuple[int, ...]:
    """Bytes of each card of this machine, or of each MIG part where a card is divided."""
    rows = [line.split(", ") for line in ask_driver(*QUERY).splitlines()]
    undivided = tuple(int(row[0]) << 20 for row in rows if row[0].isdigit() and row[-1] != "Enabled")
    if not any(row[-1] == "Enabled" for row in rows):
        return undivided
    return undivided + tuple(int(gigabytes) * 10**9 for gigabytes in MIG_PART.findall(ask_driver("-L")))


def ask_driver(*arguments: str) -> str:
    """What nvidia-smi prints; empty if it is not installed."""
    command = (NVIDIA_SMI, *arguments)
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def memory_of_cluster(address: str | None) -> Memory:
    """The least memory of all nodes with GPUs, or of all nodes if none has any; without an address, of this machine."""
    if not joins(address):
        return complete(memory_here(), "this machine", count_real_gpus() > 0)
    with open_session(address, 0, 0):
        nodes = living_nodes()
        asked = [node for node in nodes if node.gpus] or nodes
        answers = zip(asked, ask(asked), strict=True)
        found = [
            complete(memory, f"node {node.node_id[:8]}", ACCELERATOR_LABEL in node.labels) for node, memory in answers
        ]
    cards = [card for memory in found for card in memory.cards]
    return Memory((min(cards),) if cards else (), min(memory.host for memory in found))


def has_real_gpus(address: str | None) -> bool:
    """Whether there are GPUs that are not simulated, here or in the cluster."""
    if not joins(address):
        return count_real_gpus() > 0
    with open_session(address, 0, 0) as session:
        return session.num_gpus > 0 and not session.simulated


def joins(address: str | None) -> bool:
    """Whether a job of this process joins a cluster that is already running."""
    return address is not None or "RAY_ADDRESS" in os.environ or ray.is_initialized()


def complete(memory: Memory, machine: str, has_gpus: bool) -> Memory:
    """Return `memory` unchanged. Raises PlacementError if there are GPUs that nvidia-smi does not list."""
    if has_gpus and not memory.cards:
        raise PlacementError(f"--batch auto: {machine} has GPUs, but {NVIDIA_SMI} reports no memory", HINT)
    return memory


def ask(nodes: Sequence[Node]) -> list[Memory]:
    """Memory of each of these nodes, measured by a task there that reserves no CPU or GPU."""
    task = ray.remote(num_cpus=0, max_retries=0)(memory_here)
    there = (NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes)
    answers = [task.options(scheduling_strategy=strategy).remote() for strategy in there]
    try:
        return list(ray.get(answers, timeout=TIMEOUT_S))
    except ray.exceptions.RayError as error:
        cause = " ".join(str(error).split())
        raise PlacementError(f"--batch auto: the nodes did not report their memory: {cause:.200}", HINT) from error
