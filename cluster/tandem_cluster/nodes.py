"""Kinds and labels of nodes with GPUs. Pure, no Ray; `session` queries the cluster."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tandem.errors import InputError

RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a submitted job
ACCELERATOR_LABEL = "ray.io/accelerator-type"  # set by Ray on nodes with GPUs that it knows
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Node:
    """A node that is alive. Its GPUs may be simulated."""

    node_id: str
    gpus: int
    gpus_free: int
    labels: Labels

    @property
    def kind(self) -> str:
        """Kind of its GPUs in lower case, as in plans; "gpu" if the node has no label for it."""
        return self.labels.get(ACCELERATOR_LABEL, "gpu").lower()

    def matches(self, wanted: Labels) -> bool:
        """Whether the node matches all the wanted labels."""
        return all(is_selected(self.labels.get(name), value) for name, value in wanted.items())


def is_selected(label: str | None, wanted: str) -> bool:
    """Whether a label's value matches, by Ray's rule: a value, in(a,b) or !in(a,b)."""
    if wanted.startswith("!"):
        return not is_selected(label, wanted[1:])
    return label in (wanted[3:-1].split(",") if wanted.startswith("in(") else [wanted])


def parse_labels(flag: str, text: str) -> dict[str, str]:
    """Parse required node labels such as 'a=b,c=d'. Raises InputError."""
    labels = {}
    for part in text.split(","):
        name, found, value = (piece.strip() for piece in part.partition("="))
        if not found or not re.fullmatch(r"[\w./-]+", name) or not re.fullmatch(r"[\w.-]+", value):
            raise InputError(f"{flag}: expected NAME=VALUE of a Ray node label, got {part!r}")
        if name in labels:
            raise InputError(f"{flag}: expected each label once, got {name} twice")
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
    """Ray's label selector for nodes with a kind of GPU, whatever the case of their label."""
    spelt = {name for node in nodes if node.gpus and (name := node.labels.get(ACCELERATOR_LABEL))}
    mine = {name for name in spelt if name.lower() == kind}
    if mine:
        return {ACCELERATOR_LABEL: mine.pop() if len(mine) == 1 else f"in({','.join(sorted(mine))})"}
    return {ACCELERATOR_LABEL: f"!in({','.join(sorted(spelt))})"} if spelt else {}


def as_spelt(wanted: Labels, nodes: Sequence[Node]) -> Labels:
    """The labels with the kind of GPU spelt as on the nodes: Ray compares labels exactly."""
    kind = wanted.get(ACCELERATOR_LABEL, "").lower()
    known = any(node.gpus and node.kind == kind for node in nodes)
    return {**wanted, **selector(kind, nodes)} if known and ACCELERATOR_LABEL in wanted else wanted
