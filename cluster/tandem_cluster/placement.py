"""Placement of replicas on devices: pure arithmetic, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tandem.errors import PlacementError
from tandem_cluster.nodes import Labels, Node, as_spelt, count_gpus, gpus_by_kind, selector
from tandem_cluster.planner import Option

PlacementMode = Literal["auto", "split", "colocated", "mixed", "cpu"]


@dataclass(frozen=True)
class Placement:
    """Number of replicas of each stage, and what each of them requests from Ray.

    split      drafters and refiners on disjoint GPUs, one GPU each
    colocated  one actor per GPU holds both models; `num_drafters` actors
    mixed      drafters and refiners as in split, and also `num_both` actors that hold both models
    cpu        drafters and refiners as processes on CPU cores
    """

    mode: Literal["split", "colocated", "mixed", "cpu"]
    num_drafters: int
    num_refiners: int
    reason: str
    drafter_nodes: tuple[Labels, ...] = ()  # labels of each replica's node; empty: any node
    refiner_nodes: tuple[Labels, ...] = ()
    least_drafters: int = field(default=0, kw_only=True)  # the job starts with these and may grow; 0: with all
    least_refiners: int = field(default=0, kw_only=True)
    num_both: int = field(default=0, kw_only=True)
    both_nodes: tuple[Labels, ...] = field(default=(), kw_only=True)

    @property
    def gpus_per_replica(self) -> int:
        return 0 if self.mode == "cpu" else 1

    @property
    def num_actors(self) -> int:
        return self.num_drafters + (0 if self.mode == "colocated" else self.num_refiners + self.num_both)

    def describe(self) -> str:
        if self.mode == "colocated":
            replicas = f"{self.num_drafters} x (drafter + refiner)"
        else:
            counts = {
                "drafters": (self.least_drafters, self.num_drafters),
                "refiners": (self.least_refiners, self.num_refiners),
            }
            replicas = ", ".join(f"{format_range(*count)} {role}" for role, count in counts.items() if count[1])
            replicas += f", {self.num_both} x (drafter + refiner)" if self.num_both else ""
        device = "CPU" if self.mode == "cpu" else "one GPU each"
        return f"placement {self.mode}: {replicas}, {device} ({self.reason})"


def format_range(least: int, most: int) -> str:
    """A number of replicas, or a range of them."""
    return f"{least} to {most}" if 0 < least < most else str(most)


def place(
    mode: PlacementMode, num_drafters: int | None, num_refiners: int | None, num_gpus: int, simulated: bool
) -> Placement:
    """Choose the placement. Raises PlacementError if there are too few devices."""
    if mode == "auto":
        return place_automatically(num_drafters, num_refiners, num_gpus, simulated)
    if mode == "cpu":
        return Placement("cpu", num_drafters or 1, num_refiners or 1, "as asked")
    if mode == "colocated":
        if num_drafters and num_refiners and num_drafters != num_refiners:
            raise PlacementError(
                f"colocated: expected as many drafters as refiners, got {num_drafters} and {num_refiners}",
                "each actor holds both models; give only one of the two numbers",
            )
        replicas = num_drafters or num_refiners or max(1, num_gpus)
        check_gpus(replicas, num_gpus, f"{replicas} colocated replicas")
        return Placement("colocated", replicas, replicas, "as asked")
    drafters, refiners = fill_split(num_drafters, num_refiners, num_gpus)
    check_gpus(drafters + refiners, num_gpus, f"{drafters} drafters and {refiners} refiners on disjoint GPUs")
    return Placement("split", drafters, refiners, "as asked")


def fill_split(num_drafters: int | None, num_refiners: int | None, num_gpus: int) -> tuple[int, int]:
    """Fill in numbers that were not given from the free GPUs, in the paper's ratio of two drafters to one refiner."""
    if num_drafters is None and num_refiners is None:
        refiners = max(1, round(num_gpus / 3))
        return max(1, num_gpus - refiners), refiners
    if num_drafters is None:
        return max(1, num_gpus - (num_refiners or 1)), num_refiners or 1
    return num_drafters, num_refiners or max(1, num_gpus - num_drafters)


def place_automatically(
    num_drafters: int | None, num_refiners: int | None, num_gpus: int, simulated: bool
) -> Placement:
    if num_gpus == 0 or simulated:
        reason = "auto: no real GPU here"
        return Placement("cpu", num_drafters or 1, num_refiners or 1, reason)
    if num_drafters or num_refiners:
        drafters, refiners = fill_split(num_drafters, num_refiners, num_gpus)
        check_gpus(drafters + refiners, num_gpus, f"{drafters} drafters and {refiners} refiners")
        return Placement("split", drafters, refiners, "auto: numbers of drafters or refiners were given")
    reason = "auto: on equal GPUs, both models on each is never slower than a split"
    return Placement("colocated", num_gpus, num_gpus, reason)


def place_on(
    nodes: Sequence[Node], drafters_on: Labels, refiners_on: Labels, num_drafters: int | None, num_refiners: int | None
) -> Placement:
    """A split with each role on the nodes with given labels, by default on all their GPUs. Raises PlacementError."""
    drafters_on, refiners_on = as_spelt(drafters_on, nodes), as_spelt(refiners_on, nodes)
    draft_nodes = [node for node in nodes if node.gpus and node.matches(drafters_on)]
    refine_nodes = [node for node in nodes if node.gpus and node.matches(refiners_on)]
    both = [node for node in draft_nodes if node in refine_nodes]
    if both and not draft_nodes == refine_nodes == both:
        # Ray has one label selector per role and could put refiners on the only nodes that suit drafters
        raise PlacementError(
            f"--drafters-on and --refiners-on: expected the same nodes or different ones, {len(both)} are in both"
        )
    if both and (num_drafters is None or num_refiners is None):
        raise PlacementError("--drafters-on and --refiners-on name the same nodes: expected --drafters and --refiners")
    drafters, refiners = num_drafters or count_gpus(draft_nodes), num_refiners or count_gpus(refine_nodes)
    for role, count, labels, found in (
        ("drafters", drafters, drafters_on, draft_nodes),
        ("refiners", refiners, refiners_on, refine_nodes),
    ):
        named = ", ".join(f"{name}={value}" for name, value in labels.items())
        if not count_gpus(found):
            raise PlacementError(f"{role}: expected nodes of {named} with GPUs, found none")
        check_gpus(count, count_gpus(found), f"{count} {role} on nodes of {named}")
    if both:
        check_gpus(drafters + refiners, count_gpus(both), f"{drafters} drafters and {refiners} refiners")
    return Placement("split", drafters, refiners, "as asked", (drafters_on,) * drafters, (refiners_on,) * refiners)


def place_mixed(
    num_drafters: int, num_refiners: int, num_both: int, on: Sequence[Labels], nodes: Sequence[Node]
) -> Placement:
    """Given numbers of drafters, refiners and colocated replicas, on all nodes or on those with given labels."""
    numbers = {"drafters": num_drafters, "refiners": num_refiners, "colocated replicas": num_both}
    total = sum(numbers.values())
    what = ", ".join(f"{count} {role}" for role, count in numbers.items())
    check_gpus(total, count_gpus(nodes), what)
    wanted = [as_spelt(labels, nodes) for labels in on]
    for (role, count), labels in zip(numbers.items(), wanted, strict=False):
        named = ", ".join(f"{name}={value}" for name, value in labels.items())
        check_gpus(count, count_gpus([n for n in nodes if n.matches(labels)]), f"{count} {role} on nodes of {named}")
    draft_on, refine_on, both_on = (
        (labels,) * count for labels, count in zip(wanted or ({},) * 3, numbers.values(), strict=True)
    )
    return Placement(
        "mixed", num_drafters, num_refiners, "as asked", draft_on, refine_on, num_both=num_both, both_nodes=both_on
    )


def place_by_plan(option: Option, nodes: Sequence[Node]) -> Placement:
    """The placement that the planner chose; each kind of GPU is addressed by its node label."""
    reason = f"planned: {option.images_per_s:.1f} images/s predicted"
    if option.mode == "colocated":
        count = sum(option.drafters.values())
        return Placement("colocated", count, count, reason, wanted_nodes(option.drafters, nodes))
    drafters, refiners = sum(option.drafters.values()), sum(option.refiners.values())
    roles = (wanted_nodes(role, nodes) for role in (option.drafters, option.refiners))
    both, both_nodes = sum(option.both.values()), wanted_nodes(option.both, nodes)
    return Placement(option.mode, drafters, refiners, reason, *roles, num_both=both, both_nodes=both_nodes)


def wanted_nodes(counts: Mapping[str, int], nodes: Sequence[Node]) -> tuple[Labels, ...]:
    """A node selector for each replica; empty if all GPUs are of one kind."""
    if len(gpus_by_kind(nodes)) == 1:
        return ()
    return tuple(selector(kind, nodes) for kind, count in counts.items() for _ in range(count))


def place_alone(
    stage: Literal["draft", "refine"],
    mode: Literal["auto", "gpu", "cpu"],
    replicas: int | None,
    num_gpus: int,
    simulated: bool,
) -> Placement:
    """Placement of a job with one stage: one GPU per replica, or CPU processes. Raises PlacementError."""
    on_gpus = mode == "gpu" or (mode == "auto" and num_gpus > 0 and not simulated)
    count = replicas or (max(1, num_gpus) if on_gpus else 1)
    reason = "as asked" if mode != "auto" else f"auto: {'every GPU' if on_gpus else 'no real GPU here'}"
    if on_gpus:
        check_gpus(count, num_gpus, f"{count} {stage}ers")
    drafters, refiners = (count, 0) if stage == "draft" else (0, count)
    return Placement("split" if on_gpus else "cpu", drafters, refiners, reason)


def check_gpus(needed: int, available: int, what: str) -> None:
    if needed > available:
        raise PlacementError(
            f"{what}: expected at most {available} GPU{'s' if available != 1 else ''}, got {needed} replicas",
            "ask for fewer replicas, use --placement cpu, or simulate more with --logical-gpus",
        )
