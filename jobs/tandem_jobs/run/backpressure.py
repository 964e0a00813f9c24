"""How shards flow through Ray Data: a limit on what may wait between stages, and what can be seen of it meanwhile.

Ray Data holds a stage back by bytes, from half of its share of the object store on. Prefixes are so small that
thousands of shards would wait before that. Here a stage takes no new shard while as many as its replicas can have in
flight, and a few more, are under way in it or wait behind it.

Replicas may come and go. Pending actors are what an autoscaler of nodes sees, so a pool asks for all the replicas that
it may have; Ray Data's own ways are of no use here: pools grow only into GPUs that are there already, and what it asks
of an autoscaler knows no labels (`jobs/tandem_jobs/__init__.py`).

The only hook that Ray Data has for this is its list of policies, which is internal: Ray's version is pinned.
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
LOOK_EVERY_S = 0.25
# Shards that a replica has at hand: one that it works on, one whose rows are there, so that it never idles
SHARDS_IN_FLIGHT = 2
# Shards that may wait behind a stage while each of its replicas has its hands full
SLACK = 2
USABLE_SHARE = 0.25  # of the object store: Ray Data takes half, and divides that among stages


@dataclass
class StageState:
    """One stage at one moment. `waiting` counts shards that no replica has at hand yet: at the first, all to come."""

    name: str
    replicas: int  # wanted; 0 for tasks, which take any CPU that is free
    ready: int = 0
    most_ready: int = 0
    in_flight: int = 0
    waiting: int = 0
    most_waiting: int = 0
    done: int = 0
    ending: bool = False  # all that is left of its work is in hand: replicas without any are given back
    over: bool = False  # it has made its last shard
    least: int = 0  # replicas that it starts with, when others may come later; 0: all

    @property
    def limit(self) -> int:
        """Shards that may be under way in the stage or wait behind it, with all of its replicas."""
        return SHARDS_IN_FLIGHT * self.replicas + SLACK

    @property
    def limit_now(self) -> int:
        """The same with those that are ready."""
        return SHARDS_IN_FLIGHT * min(self.ready, self.replicas) + SLACK

    @property
    def needed(self) -> int:
        """Replicas without which the stage waits."""
        return self.least or self.replicas

    @property
    def is_elastic(self) -> bool:
        return self.needed < self.replicas

    @property
    def lacking(self) -> int:
        """Replicas that are not there: not placed, or still loading their weights."""
        if self.ending:
            return int(self.replicas > 0 and not self.ready and self.in_flight > 0)
        return 0 if self.over else max(0, self.replicas - self.ready)

    @property
    def short(self) -> int:
        """Those of them that are needed."""
        return max(0, self.lacking - (0 if self.ending else self.replicas - self.needed))


@dataclass
class Flow:
    """What the executor of a run last saw, stage after stage. Its thread writes, others read."""

    stages: list[StageState]
    apart: bool = True  # no node can serve two stages
    num_shards: int = 0  # to be made
    object_store_bytes: int = 0
    most_object_store_bytes: int = 0
    object_store_limit_bytes: int = 0
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def wanted(self, stage: StageState) -> int:
        """Replicas that a stage may ask for now.

        Where stages compete for nodes, none asks for more than it needs until all have what they need: a stage that
        took every GPU would wait for the next one for ever.
        """
        return stage.replicas if self.apart or not any(other.short for other in self.stages) else stage.needed

    @property
    def optional(self) -> int:
        """Replicas that are asked for and not there, without which no stage waits."""
        return sum(max(0, self.wanted(stage) - max(stage.ready, stage.needed)) for stage in self.stages)

    def finish(self) -> None:
        """Every shard has left every stage: what the executor saw last is up to `LOOK_EVERY_S` older than that."""
        for stage in self.stages:
            stage.ready, stage.in_flight, stage.waiting = stage.most_ready, 0, 0
            stage.done, stage.over = self.num_shards, True
        self.object_store_bytes = 0

    def summary(self) -> dict[str, Any]:
        """What it came to: the most replicas, the longest queue, and the object store's fullest moment."""
        return {
            "most_ready_replicas": {stage.name: stage.most_ready for stage in self.stages if stage.replicas},
            "most_waiting_shards": {stage.name: stage.most_waiting for stage in self.stages[1:]},
            "most_object_store_mb": round(self.most_object_store_bytes / 1e6, 1),
            "object_store_limit_mb": round(self.object_store_limit_bytes / 1e6, 1),
        }


def wanted_object_store(replicas: int, shard_bytes: int) -> int:
    """Bytes of an object store in which so many replicas never wait for room."""
    return int(StageState("", replicas).limit * shard_bytes / USABLE_SHARE)


_flows: dict[str, Flow] = {}  # executors are made by Ray Data and know only what a copy of the context says


def watch(flow: Flow, context: DataContext) -> None:
    """Let executors that are made with this context obey and fill `flow`."""
    _flows.clear()  # one run at a time
    _flows[flow.key] = flow
    context.set_config(FLOW_KEY, flow.key)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, ShardLimit])


class ShardLimit(BackpressurePolicy):
    """Ray Data asks it before every task, in the thread of the executor."""

    def __init__(self, data_context: DataContext, topology: Any, resource_manager: Any) -> None:
        super().__init__(data_context, topology, resource_manager)
        self.flow = _flows[data_context.get_config(FLOW_KEY)]
        self.ops: list[Any] = [op for op in topology if isinstance(op, MapOperator)]
        self.looked_at = 0.0
        if len(self.ops) != len(self.flow.stages):
            names = [op.name for op in self.ops]
            raise RuntimeError(f"expected one operator for each of {len(self.flow.stages)} stages, got {names}")
        for op in self.ops[:-1]:
            # Ray Data passes over its policies while nothing at all is under way: with no refiner there yet, drafts
            # would pile up one by one. It asks the operator itself in any case.
            op.can_add_input = partial(self.can_start, op, op.can_add_input)

    def can_start(self, op: Any, has_replica: Callable[[], bool]) -> bool:
        return has_replica() and self.can_add_input(op)

    def can_add_input(self, op: Any) -> bool:
        if time.monotonic() - self.looked_at > LOOK_EVERY_S:
            self.look()
        stage = self.ops.index(op) if op in self.ops else -1
        if stage in (-1, len(self.ops) - 1):
            return True
        behind = self._topology[self.ops[stage + 1]].total_enqueued_input_blocks()
        return bool(op.num_active_tasks() + behind < self.flow.stages[stage].limit_now)

    def look(self) -> None:
        """Write down how things stand."""
        self.looked_at = time.monotonic()
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
    """Let Ray Data keep so many actors in a pool: it starts what is missing, and drops what is pending or idle."""
    if replicas and pool.max_size() != replicas:
        pool._config = replace(pool._config, min_size=replicas, max_size=replicas, initial_size=replicas)
