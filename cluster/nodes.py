"""Nodes with GPUs: their kinds and labels. Pure, no Ray; `cluster.session` asks the cluster."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tandem.errors import InputError

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
        """Whether it has all the labels that are wanted."""
        return all(self.labels.get(name) == value for name, value in wanted.items())


def parse_labels(flag: str, text: str) -> dict[str, str]:
    """'a=b,c=d' -> labels that a node has to have. Raises InputError."""
    labels = {}
    for part in text.split(","):
        name, found, value = (piece.strip() for piece in part.partition("="))
        if not found or not re.fullmatch(r"[\w./-]+", name) or not re.fullmatch(r"[\w.-]+", value):
            raise InputError(f"{flag}: expected NAME=VALUE of a Ray node label, got {part!r}")
        labels[name] = value
    return labels


def gpus_by_kind(nodes: Sequence[Node], wanted: Labels | None = None) -> Counter[str]:
    """GPUs of each kind on the nodes with these labels."""
    found: Counter[str] = Counter()
    for node in nodes:
        if node.gpus and node.matches(wanted or {}):
            found[node.kind] += node.gpus
    return found


def count_gpus(nodes: Sequence[Node]) -> int:
    return sum(node.gpus for node in nodes)


def selector(kind: str, nodes: Sequence[Node]) -> dict[str, str]:
    """Labels of the nodes whose GPUs are of a kind; none where no label tells them."""
    label = next((n.labels.get(ACCELERATOR_LABEL) for n in nodes if n.gpus and n.kind == kind), None)
    return {ACCELERATOR_LABEL: label} if label else {}
