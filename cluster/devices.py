"""How much memory the devices have on which replicas run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.nodes import Node
from cluster.session import living_nodes, open_session
from tandem.errors import PlacementError

# NVIDIA's driver brings it, and it sees cards that Ray has hidden from this process
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
TIMEOUT_S = 60


@dataclass(frozen=True)
class Memory:
    """Of one machine, or the smallest of several: bytes of each of its cards, and of the machine itself."""

    cards: tuple[int, ...]
    host: int

    @property
    def has_cards(self) -> bool:
        return bool(self.cards)


def memory_here() -> Memory:
    """Memory of this machine, as far as its container may use it."""
    try:
        shown = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        shown = ""
    cards = tuple(int(mebibytes) << 20 for mebibytes in shown.split() if mebibytes.isdigit())
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else ""
    return Memory(cards, min(host, int(limit)) if limit.isdigit() else host)


def memory_of_cluster(address: str | None) -> Memory:
    """The least of all nodes that have GPUs, or of all nodes where none has; without an address, of this machine."""
    if address is None and "RAY_ADDRESS" not in os.environ and not ray.is_initialized():
        return memory_here()
    with open_session(address, 0, 0):
        nodes = living_nodes()
        found = ask([node for node in nodes if node.gpus] or nodes)
    cards = [card for memory in found for card in memory.cards]
    return Memory((min(cards),) if cards else (), min(memory.host for memory in found))


def ask(nodes: Sequence[Node]) -> list[Memory]:
    """Memory of each of these nodes, from a task there that takes none of its CPUs or GPUs."""
    task = ray.remote(num_cpus=0, max_retries=0)(memory_here)
    there = (NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes)
    answers = [task.options(scheduling_strategy=strategy).remote() for strategy in there]
    try:
        return list(ray.get(answers, timeout=TIMEOUT_S))
    except ray.exceptions.RayError as error:
        cause = " ".join(str(error).split())
        raise PlacementError(
            f"--batch auto: the nodes did not tell their memory: {cause:.200}", "give --device-memory-gb"
        ) from error
