"""Actor pools: their stages, replicas and nodes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from tandem_workers.dataset.shards import ShardRows
from tandem_workers.stages.ray_data import FINISHER, Stage


@dataclass(frozen=True)
class ActorPool:
    """One kind of actor: its input type, the stages that it runs in order, the number of replicas, and their nodes."""

    name: str
    takes: type[ShardRows]
    stages: Sequence[Stage]
    replicas: int
    nodes: Sequence[Mapping[str, str]] = ()  # for each replica the Ray labels of its node; none: anywhere
    least: int = 0  # replicas that it starts with, when others may come later; 0: all
    further: Sequence[Stage] = ()  # stages of the next pool
    finishers: int = 0  # the last so many replicas run these as well
    passes: type[ShardRows] | None = None  # shards that finishers of the pool before have made


def actor_options(pool: ActorPool) -> dict[str, Any]:
    """Ray options of a pool's actors: their nodes, and the variable that marks finishers."""
    nodes = [dict(labels) for labels in pool.nodes] or [{}] * pool.replicas
    first = pool.replicas - pool.finishers
    args: list[dict[str, Any]] = [{"label_selector": labels or None} for labels in nodes]
    if pool.finishers:
        args[first:] = [arg | {"runtime_env": {"env_vars": {FINISHER: "1"}}} for arg in args[first:]]
    if all(arg == args[0] for arg in args):
        return args[0]
    # Ray Data 2.60 has no other way to give actors of one pool different options, and drops this one in 2.64
    warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
    turns = cycle(args)
    return {"ray_remote_args_fn": lambda: next(turns)}


def writer_options(last: ActorPool) -> dict[str, Any]:
    """Ray options of the writing tasks: in elastic jobs they prefer the last pool's nodes, so that others can go."""
    labels = actor_options(last).get("label_selector") if last.least else None
    return {"label_selector": labels, "fallback_strategy": [{"label_selector": {}}]} if labels else {}
