"""Backpressure for Ray Data: limits how many shards wait between stages, and reports the state of the stages.

Ray Data holds a stage back by bytes, once half of its share of the object store is full. Prefixes are so small that
thousands of shards could wait before that. Here a stage takes no new shard while the shards in it and waiting behind it
are as many as its ready replicas can have in flight, and SLACK more.

The number of replicas may change. A node autoscaler sees only pending actors, so a pool requests all the replicas that
it may have. Ray Data's own scaling does not help: pools grow only into GPUs that are already there, and its requests to
the autoscaler have no labels (`jobs/tandem_jobs/__init__.py`).

Ray Data's only hook for this is its internal list of policies, which is why Ray's version is pinned.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.operators.map_operator import MapOperator

FLOW_KEY = "tandem.flow"
REFRESH_EVERY_S = 0.25
# Shards per replica: one in work and one already loaded, so that it never idles
SHARDS_IN_FLIGHT = 2
# Shards that may wait behind a stage when all its replicas are busy
SLACK = 2
USABLE_SHARE = 0.25  # of the object store: Ray Data uses half, and divides that among stages


@dataclass
class StageState:
    """One stage at one moment. `waiting`: shards queued for its replicas; for the first stage, all remaining ones."""

    name: str
    replicas: int  # wanted; 0 for tasks, which run on any free CPU
    ready: int = 0
    most_ready: int = 0
    in_flight: int = 0
    waiting: int = 0
    most_waiting: int = 0
    done: int = 0
    ending: bool = False  # its last shards are in work: idle replicas are released
    over: bool = False  # it has made its last shard
    least: int = 0  # replicas that an elastic stage starts with; 0: all

    @property
    def limit(self) -> int:
        """Most shards in the stage or waiting behind it, when all of its replicas are ready."""
        return SHARDS_IN_FLIGHT * self.replicas + SLACK

    @property
    def limit_now(self) -> int:
        """The same for the replicas that are ready now."""
        return SHARDS_IN_FLIGHT * min(self.ready, self.replicas) + SLACK

    @property
    def needed(self) -> int:
        """Replicas that the stage cannot start without."""
        return self.least or self.replicas

    @property
    def is_elastic(self) -> bool:
        return self.needed < self.replicas

    @property
    def missing(self) -> int:
        """Replicas that are not ready: not placed, or still loading their weights."""
        if self.ending:
            return int(self.replicas > 0 and not self.ready and self.in_flight > 0)
        return 0 if self.over else max(0, self.replicas - self.ready)

    @property
    def missing_needed(self) -> int:
        """Missing replicas that the stage needs."""
        return max(0, self.missing - (0 if self.ending else self.replicas - self.needed))


@dataclass
class Flow:
    """State of a run's stages as its executor last saw them. The executor's thread writes, others read."""

    stages: list[StageState]
    apart: bool = True  # no node matches two stages
    num_shards: int = 0  # to be made
    object_store_bytes: int = 0
    most_object_store_bytes: int = 0
    object_store_limit_bytes: int = 0
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def wanted(self, stage: StageState) -> int:
        """Replicas that a stage may request now.

        If stages compete for nodes, none requests more than it needs until all have what they need: a stage that took
        every GPU would wait forever for the next stage.
        """
        return stage.replicas if self.apart or not any(other.missing_needed for other in self.stages) else stage.needed

    @property
    def optional(self) -> int:
        """Requested replicas that are not ready and that no stage needs."""
        return sum(max(0, self.wanted(stage) - max(stage.ready, stage.needed)) for stage in self.stages)

    def finish(self) -> None:
        """Set the final state: the executor's last refresh may be `REFRESH_EVERY_S` old."""
        for stage in self.stages:
            stage.ready, stage.in_flight, stage.waiting = stage.most_ready, 0, 0
            stage.done, stage.over = self.num_shards, True
        self.object_store_bytes = 0

    def summary(self) -> dict[str, Any]:
        """Maxima of the run: ready replicas, waiting shards, and bytes in the object store."""
        return {
            "most_ready_replicas": {stage.name: stage.most_ready for stage in self.stages if stage.replicas},
            "most_waiting_shards": {stage.name: stage.most_waiting for stage in self.stages[1:]},
            "most_object_store_mb": round(self.most_object_store_bytes / 1e6, 1),
            "object_store_limit_mb": round(self.object_store_limit_bytes / 1e6, 1),
        }


def wanted_object_store(replicas: int, shard_bytes: int) -> int:
    """Object store size at which this many replicas never wait for space."""
    return int(StageState("", replicas).limit * shard_bytes / USABLE_SHARE)


_flows: dict[str, Flow] = {}  # by key: Ray Data makes the executors, which get only a copy of the context


def watch(flow: Flow, context: DataContext) -> None:
    """Make executors with this context apply the limits of `flow` and update it."""
    _flows.clear()  # one run at a time
    _flows[flow.key] = flow
    context.set_config(FLOW_KEY, flow.key)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, ShardLimit])


class ShardLimit(BackpressurePolicy):
    """Ray Data calls this policy before every task, in the executor's thread."""

    def __init__(self, data_context: DataContext, topology: Any, resource_manager: Any) -> None:
        super().__init__(data_context, topology, resource_manager)
        self.flow = _flows[data_context.get_config(FLOW_KEY)]
        self.ops: list[Any] = [op for op in topology if isinstance(op, MapOperator)]
        self.refreshed_at = 0.0
        if len(self.ops) != len(self.flow.stages):
            names = [op.name for op in self.ops]
            raise RuntimeError(f"expected one operator for each of {len(self.flow.stages)} stages, got {names}")
        for op in self.ops[:-1]:
            # Ray Data ignores its policies while nothing is in flight: before the first refiner is ready, drafts would
            # pile up one by one. It always asks the operator itself.
            op.can_add_input = partial(self.can_start, op, op.can_add_input)

    def can_start(self, op: Any, has_replica: Callable[[], bool]) -> bool:
        return has_replica() and self.can_add_input(op)

    def can_add_input(self, op: Any) -> bool:
        if time.monotonic() - self.refreshed_at > REFRESH_EVERY_S:
            self.refresh()
        stage = self.ops.index(op) if op in self.ops else -1
        if stage in (-1, len(self.ops) - 1):
            return True
        behind = self._topology[self.ops[stage + 1]].total_enqueued_input_blocks()
        return bool(op.num_active_tasks() + behind < self.flow.stages[stage].limit_now)

    def refresh(self) -> None:
        """Update the state of the stages, and the sizes of their pools."""
        self.refreshed_at = time.monotonic()
        flow = self.flow
        for op, stage in zip(self.ops, flow.stages, strict=True):
            stage.ready = op.get_actor_info().running
            stage.most_ready = max(stage.most_ready, stage.ready)
            stage.in_flight = op.num_active_tasks()
            stage.waiting = self._topology[op].total_enqueued_input_blocks()
            stage.most_waiting = max(stage.most_waiting, stage.waiting)
            stage.done = op.metrics.num_tasks_finished
            stage.over = op.has_execution_finished()
            stage.ending = op._inputs_complete and not stage.waiting
        for op, stage in zip(self.ops, flow.stages, strict=True):
            for pool in op.get_autoscaling_actor_pools():
                resize(pool, flow.wanted(stage))
        flow.object_store_bytes = int(self._resource_manager.get_global_usage().object_store_memory or 0)
        flow.most_object_store_bytes = max(flow.most_object_store_bytes, flow.object_store_bytes)
        flow.object_store_limit_bytes = int(self._resource_manager.get_global_limits().object_store_memory or 0)


def resize(pool: Any, replicas: int) -> None:
    """Set the size of an actor pool: Ray Data starts missing actors, and drops pending or idle ones."""
    if replicas and pool.max_size() != replicas:
        pool._config = replace(pool._config, min_size=replicas, max_size=replicas, initial_size=replicas)
