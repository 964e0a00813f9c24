"""Pools of actors: what they run, how many there are, and on which nodes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from tandem_workers.dataset.shards import ShardRows
from tandem_workers.stages.ray_data import FINISHER, Stage


@dataclass(frozen=True)
class Pool:
    """One kind of actor: what comes in, the stages that it runs in order, how many there are, and on which nodes."""

    name: str
    takes: type[ShardRows]
    stages: Sequence[Stage]
    replicas: int
    nodes: Sequence[Mapping[str, str]] = ()  # for each replica the Ray labels of its node; none: anywhere
    least: int = 0  # replicas that it starts with, when others may come later; 0: all
    further: Sequence[Stage] = ()  # stages of the next pool
    finishers: int = 0  # the last so many replicas run these as well
    passes: type[ShardRows] | None = None  # shards that finishers of the pool before have made


def where(pool: Pool) -> dict[str, Any]:
    """What tells Ray Data on which nodes a pool's actors belong, and which of them are finishers."""
    nodes = [dict(labels) for labels in pool.nodes] or [{}] * pool.replicas
    first = pool.replicas - pool.finishers
    args: list[dict[str, Any]] = [{"label_selector": labels or None} for labels in nodes]
    if pool.finishers:
        args[first:] = [arg | {"runtime_env": {"env_vars": {FINISHER: "1"}}} for arg in args[first:]]
    if all(arg == args[0] for arg in args):
        return args[0]
    # Ray Data 2.60 has no other way to tell actors of one pool apart, and drops this one in 2.64
    warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
    turns = cycle(args)
    return {"ray_remote_args_fn": lambda: next(turns)}


def where_to_write(last: Pool) -> dict[str, Any]:
    """The CPUs of the last pool's nodes where nodes come and go: no other node is kept for a task now and then."""
    labels = where(last).get("label_selector") if last.least else None
    return {"label_selector": labels, "fallback_strategy": [{"label_selector": {}}]} if labels else {}
