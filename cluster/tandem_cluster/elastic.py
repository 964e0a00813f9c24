"""Replicas of an elastic job, which starts small and grows as nodes join. Pure arithmetic, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.errors import PlacementError
from tandem_cluster.nodes import Labels
from tandem_cluster.placement import Placement


@dataclass(frozen=True)
class Range:
    """Number of replicas of a stage: the job starts once `least` are up and grows to `most`."""

    least: int
    most: int


def place_elastically(
    drafters: Range, refiners: Range, on: tuple[Labels, Labels] | None, num_gpus: int, can_grow: bool
) -> Placement:
    """A split placement that may grow. Raises PlacementError if the least does not fit and no node can join."""
    least = drafters.least + refiners.least
    if not can_grow and least > num_gpus:
        raise PlacementError(
            f"{drafters.least} drafters and {refiners.least} refiners to start with: expected at most {num_gpus} "
            f"GPU{'s' * (num_gpus != 1)}, got {least} replicas, and no node can join a cluster that is started here",
            "lower --min-drafters and --min-refiners, join a cluster with --address, or simulate with --logical-gpus",
        )
    nodes = [(labels,) * count for labels, count in zip(on or (), (drafters.most, refiners.most), strict=False)]
    return Placement(
        "split",
        drafters.most,
        refiners.most,
        "as nodes come",
        *nodes,
        least_drafters=drafters.least,
        least_refiners=refiners.least,
    )


def are_apart(first: Sequence[Labels], second: Sequence[Labels]) -> bool:
    """Whether the labels that the replicas of two roles ask for exclude each other on every node. None: any node."""
    return bool(first and second) and all(excludes(one, other) for one in first for other in second)


def excludes(one: Labels, other: Labels) -> bool:
    """Whether no node can match both sets of plain labels."""
    plain = [name for name, value in one.items() if not value.startswith(("in(", "!"))]
    return any(
        name in other and not other[name].startswith(("in(", "!")) and one[name] != other[name] for name in plain
    )
