"""What the nodes of the running cluster are and have free, and why some work cannot be placed on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

ACCELERATOR_LABEL = "ray.io/accelerator-type"  # set by Ray on nodes with GPUs that it knows
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Node:
    """A living node. GPUs may be simulated."""

    node_id: str
    gpus: int
    gpus_free: int
    labels: Labels

    @property
    def kind(self) -> str:
        """Kind of its GPUs in lower case, as plans name it; "gpu" where nobody has said."""
        return self.labels.get(ACCELERATOR_LABEL, "gpu").lower()

    def matches(self, wanted: Labels) -> bool:
        """Whether its labels are those that are wanted: a value, or several as in(a,b)."""
        return all(self.labels.get(name) in values_of(value) for name, value in wanted.items())


def values_of(value: str) -> list[str]:
    return value[3:-1].split(",") if value.startswith("in(") else [value]


def living_nodes() -> list[Node]:
    """All nodes that answer."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = []
    for info in (*status.active_nodes, *status.idle_nodes):
        usage = info.resource_usage.usage if info.resource_usage else []
        total, used = next(((u.total, u.used) for u in usage if u.resource_name == "GPU"), (0, 0))
        labels = dict(info.labels or {})
        typed = (u.resource_name.partition("accelerator_type:")[2] for u in usage)
        if name := next(filter(None, typed), ""):
            labels.setdefault(ACCELERATOR_LABEL, name)
        nodes.append(Node(str(info.node_id), int(total), int(total - used), labels))
    return nodes


def gpus_by_kind(nodes: Sequence[Node], wanted: Labels | None = None) -> Counter[str]:
    """GPUs of each kind on the nodes with these labels."""
    found: Counter[str] = Counter()
    for node in nodes:
        if node.gpus and node.matches(wanted or {}):
            found[node.kind] += node.gpus
    return found


def num_unplaced() -> int:
    """Actors and tasks that wait for a GPU on some node."""
    demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
    bundles = (b for demand in demands.ray_task_actor_demand for b in demand.bundles_by_count)
    return sum(b.count for b in bundles if b.bundle.get("GPU"))


def why_unplaced(what: str, wanted: Labels) -> str:
    """One line: which nodes would do, and what they have."""
    nodes = [node for node in living_nodes() if node.matches(wanted)]
    labels = "".join(f" of {name}={value}" for name, value in wanted.items())
    gpus, free = sum(n.gpus for n in nodes), sum(n.gpus_free for n in nodes)
    there = f"{len(nodes)} node{'s' * (len(nodes) != 1)}{labels} with {gpus} GPUs, {free} of them free"
    return f"{what}: each needs a GPU, and there are {there}"
