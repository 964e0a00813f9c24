"""Placement of the endpoint's replicas: how many, on which nodes, and how they scale with load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tandem.errors import PlacementError
from tandem_cluster.nodes import gpus_by_kind, parse_labels
from tandem_cluster.placement import Placement, place, place_by_plan
from tandem_cluster.planner import Request, make_plan
from tandem_cluster.profile_file import read_profile
from tandem_cluster.session import Session, living_nodes
from tandem_jobs.serve_options import AppSpec
from tandem_workers.endpoint.app import ReplicaRange


def choose_placement(spec: AppSpec, session: Session, draft_steps: int) -> Placement:
    """By profiles, labels, or number alone. By default one of each on CPUs and on simulated GPUs."""
    if spec.drafters_on and spec.refiners_on and spec.drafters and spec.refiners:
        # nodes may join an elastic cluster when replicas request them, so the present ones do not matter
        drafter_nodes = (parse_labels("--drafters-on", spec.drafters_on),) * spec.drafters
        refiner_nodes = (parse_labels("--refiners-on", spec.refiners_on),) * spec.refiners
        mode: Literal["split", "colocated"] = "colocated" if spec.placement == "colocated" else "split"
        return Placement(mode, spec.drafters, spec.refiners, "as asked", drafter_nodes, refiner_nodes)
    if spec.profile:
        return place_by_profiles(spec.profile, spec.placement, draft_steps)
    drafters = spec.drafters
    if spec.placement == "colocated" and session.simulated:
        drafters = drafters or spec.refiners or 1
    return place(spec.placement, drafters, spec.refiners, session.num_gpus, session.simulated)


def place_by_profiles(profiles: Sequence[str], mode: str, draft_steps: int) -> Placement:
    """The best plan with one kind of GPU per role, since all replicas of a deployment request the same nodes."""
    nodes = living_nodes()
    request = Request(gpus_by_kind(nodes), images=1, draft_steps=draft_steps, batch=None)
    plan = make_plan([read_profile(source) for source in profiles], request)
    for option in (plan.best, *plan.runners_up):
        if mode in ("auto", option.mode) and len(option.drafters) == len(option.refiners) == 1:
            return place_by_plan(option, nodes)
    raise PlacementError("--profile: no good plan has one kind of GPU per role; give --drafters and --refiners")


def replica_ranges(spec: AppSpec, placement: Placement) -> tuple[ReplicaRange, ReplicaRange | None]:
    """Replica ranges of both deployments, or of the one that holds both models.

    A drafter holds a request until its refiner has answered. So with D drafters and R refiners, equally busy, a drafter
    holds 1 + R / D times the requests of a refiner; with targets in this ratio both scale in the plan's ratio.
    """
    cpus = float(spec.threads) if placement.mode == "cpu" else 0.0
    gpus = float(placement.gpus_per_replica)
    drafters, refiners = placement.num_drafters, placement.num_refiners
    least = (1, 1) if spec.autoscale else (drafters, refiners)
    at_once = float(spec.batch)
    draft_nodes, refine_nodes = (next(iter(nodes), {}) for nodes in (placement.drafter_nodes, placement.refiner_nodes))
    draft = ReplicaRange(least[0], drafters, cpus, gpus, at_once * (1 + refiners / drafters), draft_nodes)
    if placement.mode == "colocated":
        return draft, None
    return draft, ReplicaRange(least[1], refiners, cpus, gpus, at_once, refine_nodes)
