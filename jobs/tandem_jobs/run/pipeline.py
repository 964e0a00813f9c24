"""The pipeline of a job: its stages, and the actors and tasks that run them on Ray Data.

    read     ReadLabels, ReadDrafts   the number of a shard -> its rows        in the actors of the first pool
    draft    Drafter                  labels -> prefixes of token ids          pool "draft"
    refine   Refiner                  prefixes -> pixels                       pool "refine"
    write    Writer                   pixels, or prefixes -> files, committed  tasks on any CPU

The method `pipeline` of a command's job makes these objects. Here they are placed on actors and tasks; an actor may run
several stages (pool "draft + refine"). Ray Data moves shards between them, recovers lost ones and holds back
fast stages. One shard is one row of one block, so that it is never split.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

from tandem.errors import JobError, OutputError
from tandem_cluster.elastic import are_apart
from tandem_cluster.placement import Placement
from tandem_jobs.run.backpressure import SHARDS_IN_FLIGHT, Flow, StageState, watch
from tandem_jobs.run.outcome import StoredShard, as_job_error, outcome
from tandem_jobs.run.pools import ActorPool, actor_options, writer_options
from tandem_jobs.run.watchdog import WatchdogLimits
from tandem_workers.dataset.commit import Format, store_shard
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import FailedShard, PixelShard, PrefixShard, ShardPlan, ShardRows
from tandem_workers.stages.data_context import own_context
from tandem_workers.stages.encoder import ImageEncoder
from tandem_workers.stages.job_metrics import stage_metrics
from tandem_workers.stages.ledger import NO_LEDGER, Ledger
from tandem_workers.stages.ray_data import (
    Row,
    Span,
    Stage,
    StageActor,
    empty_shard,
    failed_row,
    from_row,
    is_failed,
    replica_name,
    rows_of,
    to_row,
)
from tandem_workers.storage.store import Store

# Failed starts in a row before the run ends: a file or a device may not answer at once, or a node may be lost
MAX_FAILED_STARTS = 2


@dataclass(frozen=True)
class Pipeline:
    """How shards are made: pools of actors read them and work on them, tasks write them."""

    plan: ShardPlan
    pools: list[ActorPool]  # in order; the first stage of the first one reads
    write: ShardSink
    gpus_per_replica: int
    shard_bytes: int  # size of a shard from the last pool
    limits: WatchdogLimits = field(default_factory=WatchdogLimits)

    @property
    def most_bytes(self) -> int:
        """Most bytes that can wait for the sink, even if it stands still."""
        states = self.flow(self.plan.num_shards).stages[:-1]
        finished = StageState("", self.pools[0].finishers).limit if self.pools[0].finishers else 0
        return (states[-1].limit + finished) * self.shard_bytes

    def flow(self, num_shards: int) -> Flow:
        """The initial state of a run of this many shards, updated while it lasts."""
        pools = [
            StageState(pool.name, min(pool.replicas, num_shards), least=min(pool.least, num_shards))
            for pool in self.pools
        ]
        apart = all(are_apart(one.nodes, other.nodes) for one, other in combinations(self.pools, 2))
        return Flow([*pools, StageState("write", 0)], apart, num_shards)

    def run(self, shards: list[int], flow: Flow) -> Iterator[StoredShard | FailedShard]:
        """Make the given shards; yields each one as soon as it is committed or has failed, in any order."""
        with own_context() as context:
            set_up(context, flow)
            # Only shard numbers go in; the first actors read the rows. A read task for each shard would cost more than
            # reading, and would run ahead while actors load their weights.
            made: ray.data.Dataset = ray.data.from_items(shards, override_num_blocks=len(shards))
            for pool, state in zip(self.pools, flow.stages, strict=False):
                made = made.map_batches(
                    type(pool.name, (StageActor,), {}),  # Ray's views and process titles show the name of the class
                    fn_constructor_args=(
                        pool.takes,
                        pool.stages,
                        pool.further,
                        pool.passes,
                        Ledger(flow.key, pool.name),
                    ),
                    batch_size=1,
                    batch_format="numpy",
                    compute=ActorPoolStrategy(
                        size=flow.wanted(state),
                        max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT,
                        max_concurrent_calls_per_actor=SHARDS_IN_FLIGHT,  # the next shard's rows arrive meanwhile
                    ),
                    **actor_options(pool),
                    num_gpus=self.gpus_per_replica,
                    num_cpus=0,  # actors set their own threads; a CPU each could starve the writing tasks
                )
            written = made.map_batches(
                write_shard,  # type: ignore[arg-type]  # Ray's types do not count fn_kwargs
                fn_kwargs={"write": self.write, "ledger": Ledger(flow.key, "write")},
                batch_size=1,
                batch_format="numpy",
                **writer_options(self.pools[-1]),
                num_cpus=1,
            )
            try:
                for bundle in written.iter_internal_ref_bundles():
                    yield from map(outcome, rows_of(bundle))
            except ray.exceptions.RayError as error:
                raise as_job_error(error) from error


def set_up(context: DataContext, flow: Flow) -> None:
    """Shards stay whole, and Ray Data's executor obeys and fills `flow`."""
    context.target_max_block_size = None  # a shard's pixels may be larger than Ray's usual block
    context.max_consecutive_actor_init_deaths = MAX_FAILED_STARTS
    watch(flow, context)


def draft_pool(placement: Placement, *stages: Stage) -> ActorPool:
    """Drafters alone: labels in, prefixes out."""
    replicas, nodes = placement.num_drafters, placement.drafter_nodes
    return ActorPool("draft", ShardRows, stages, replicas, nodes, placement.least_drafters)


def refine_pool(placement: Placement, *stages: Stage) -> ActorPool:
    """Refiners alone: prefixes in, pixels out."""
    replicas, nodes = placement.num_refiners, placement.refiner_nodes
    return ActorPool("refine", PrefixShard, stages, replicas, nodes, placement.least_refiners)


def generate_pools(placement: Placement, draft: Sequence[Stage], refine: Stage) -> list[ActorPool]:
    """Both: two pools, colocated one whose actors run all stages, or mixed two, where some of the first run all."""
    drafters, refiners = draft_pool(placement, *draft), refine_pool(placement, refine)
    if placement.mode == "mixed":
        finishers = replace(
            drafters,
            replicas=placement.num_drafters + placement.num_both,
            nodes=(*placement.drafter_nodes, *placement.both_nodes),
            further=refiners.stages,
            finishers=placement.num_both,
        )
        return [finishers, replace(refiners, passes=PixelShard)]
    if placement.mode == "colocated":
        return [ActorPool("draft + refine", ShardRows, [*draft, refine], drafters.replicas, drafters.nodes)]
    return [drafters, refiners]


class ShardSink(Protocol):
    """The end of a pipeline. May be called twice for the same shard."""

    @property
    def takes(self) -> type[ShardRows]:
        """The type of shard that it expects."""

    def __call__(self, shard: Any, spans: list[Span]) -> None:
        """Store the shard, and append the work done to `spans`."""


def write_shard(row: Row, write: ShardSink, ledger: Ledger = NO_LEDGER) -> Row:
    """The last task of a pipeline: stores the shard and returns a row without its data for the driver."""
    if is_failed(row):
        return row
    shard, spans = from_row(row, write.takes)
    before = len(spans)
    with ledger.attempt(f"shard {shard.shard}", replica_name()) as attempt:
        if attempt.given_up:
            return failed_row(shard.shard, "write", JobError(attempt.given_up))
        attempt.enter("write")
        try:
            write(shard, spans)
        except OutputError:  # the store failed, not the shard
            raise
        except Exception as error:
            return failed_row(shard.shard, "write", error)
    for span in spans[before:]:
        stage_metrics().observe(span.stage, span.seconds, len(shard))
    done = empty_shard(shard.shard)
    done.warnings, done.fallbacks = shard.warnings, shard.fallbacks
    done.seconds, done.starts = shard.seconds, shard.starts
    return to_row(done, spans) | {"rows": np.array([len(shard)])}


@dataclass(frozen=True)
class Writer:
    """Turns a shard into files, stores and commits them. Images are encoded first; drafts have no encoder."""

    encoder: ImageEncoder | None
    fmt: Format
    plan: ShardPlan
    store: Store
    epoch: int = 0

    @property
    def takes(self) -> type[ShardRows]:
        return PixelShard if self.encoder else PrefixShard

    def __call__(self, shard: PixelShard | PrefixShard, spans: list[Span]) -> None:
        replica, began = replica_name(), time.time()
        encoded: ShardRows = shard
        if self.encoder is not None:
            assert isinstance(shard, PixelShard)
            encoded, start = self.encoder(shard), began
            began = time.time()
            spans.append(Span("encode", replica, start, began))
        store_shard(self.store, Manifest(self.store, self.epoch), encoded, self.fmt, self.plan)
        spans.append(Span("store", replica, began, time.time()))
