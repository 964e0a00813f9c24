"""Pipelines, all stages in order: labels -> draft -> refine + decode -> encode + store, and the parts of it.

Ray Data carries shards from stage to stage, recovers lost ones and holds back fast stages. One shard is one row
of one block, so that it travels whole.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import ray
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

from tandem.errors import JobError, OutputError
from tandem_cluster.elastic import are_apart
from tandem_cluster.placement import Placement
from tandem_jobs.run.backpressure import SHARDS_IN_FLIGHT, Flow, StageState, watch
from tandem_jobs.run.pools import Pool, where, where_to_write
from tandem_jobs.run.watchdog import Limits
from tandem_workers.dataset.commit import Format, store_shard
from tandem_workers.dataset.fallbacks import Fallback
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import FailedShard, PixelShard, PrefixShard, ShardPlan, ShardRows
from tandem_workers.dataset.start_times import ReplicaStart
from tandem_workers.stages.encoder import Encoder
from tandem_workers.stages.job_metrics import stage_metrics
from tandem_workers.stages.ledger import NO_LEDGER, Ledger
from tandem_workers.stages.ray_data import (
    Read,
    Row,
    Span,
    StageActor,
    empty_shard,
    failed_row,
    from_row,
    is_failed,
    replica_name,
    to_row,
)
from tandem_workers.storage.store import Store

if TYPE_CHECKING:
    from tandem_workers.models.decode_settings import DecodeSettings
    from tandem_workers.models.model_set import ModelSet


# Actors of a stage that may die one after the other before they are ready: a file or a device that does not answer at
# once, a node that is lost meanwhile. One more ends the run.
MOST_FALSE_STARTS = 2


@dataclass(frozen=True)
class Pipeline:
    """How shards are made: read and worked on by pools of actors, stored by a task."""

    plan: ShardPlan
    read: Callable[[int], ShardRows]  # by shard id
    pools: list[Pool]
    write: ShardSink
    gpus_per_replica: int
    shard_bytes: int  # of what the last pool hands to the sink
    limits: Limits = field(default_factory=Limits)

    @property
    def most_bytes(self) -> int:
        """What may wait for the sink, however slow it is."""
        states = self.flow(self.plan.num_shards).stages[:-1]
        finished = StageState("", self.pools[0].finishers).limit if self.pools[0].finishers else 0
        return (states[-1].limit + finished) * self.shard_bytes

    def flow(self, num_shards: int) -> Flow:
        """The stages of a run of so many shards, to be watched while it lasts."""
        pools = [
            StageState(pool.name, min(pool.replicas, num_shards), least=min(pool.least, num_shards))
            for pool in self.pools
        ]
        apart = all(are_apart(one.nodes, other.nodes) for one, other in combinations(self.pools, 2))
        return Flow([*pools, StageState("write", 0)], apart, num_shards)

    def run(self, shards: list[int], flow: Flow) -> Iterator[StoredShard | FailedShard]:
        """Make the given shards; yields each one as soon as it is committed or has failed, in any order."""
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = None  # a shard's pixels may be larger than Ray's usual block
        context.max_consecutive_actor_init_deaths = MOST_FALSE_STARTS
        context.execution_no_progress_timeout_s = -1  # waiting for a node is said, and the watchdog knows slow shards
        watch(flow, context)
        # Numbers alone go in. Rows are read by the first actors: a task of its own for each shard would cost more
        # than it does, and would run ahead while actors load their weights.
        dataset: ray.data.Dataset = ray.data.from_items(shards, override_num_blocks=len(shards))
        first, *others = self.pools
        pools = [replace(first, stages=[partial(Read, self.read), *first.stages]), *others]
        for pool, state in zip(pools, flow.stages, strict=False):
            dataset = dataset.map_batches(
                type(pool.name, (StageActor,), {}),  # Ray's views and process titles show the name
                fn_constructor_args=(pool.takes, pool.stages, pool.further, pool.passes, Ledger(flow.key, pool.name)),
                batch_size=1,
                batch_format="numpy",
                compute=ActorPoolStrategy(
                    size=flow.wanted(state),
                    max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT,
                    max_concurrent_calls_per_actor=SHARDS_IN_FLIGHT,  # the next one's rows arrive meanwhile
                ),
                **where(pool),
                num_gpus=self.gpus_per_replica,
                num_cpus=0,  # actors set their own threads; a CPU each could starve the writing tasks
            )
        finish = partial(write_shard, write=self.write, ledger=Ledger(flow.key, "write"))
        beside = where_to_write(self.pools[-1])
        dataset = dataset.map_batches(finish, batch_size=1, batch_format="numpy", num_cpus=1, **beside)
        try:
            for row in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=0):
                yield outcome(row)
        except ray.exceptions.RayError as error:
            raise as_job_error(error) from error


@dataclass(frozen=True)
class StoredShard:
    """A shard that has been committed, and who worked on it when."""

    shard: int
    num_rows: int
    spans: tuple[Span, ...]
    warnings: tuple[str, ...] = ()  # of the actors that worked on it, since they began
    seconds: Mapping[str, float] = field(default_factory=dict)  # of each stage that an actor ran
    starts: tuple[ReplicaStart, ...] = ()  # of the actors whose first shard it is
    fallbacks: tuple[Fallback, ...] = ()  # of the actors that worked on it


def outcome(row: Row) -> StoredShard | FailedShard:
    """What the last stage says of a shard."""
    if is_failed(row):
        return from_row(row, FailedShard)[0]
    shard, spans = from_row(row, ShardRows)
    num_rows, notes = int(row["rows"][0]), (tuple(shard.warnings), shard.seconds, tuple(shard.starts))
    return StoredShard(shard.shard, num_rows, tuple(spans), *notes, tuple(shard.fallbacks))


class ShardSink(Protocol):
    """What becomes of a shard in the end. May be called twice for the same shard."""

    @property
    def takes(self) -> type[ShardRows]:
        """The form of shard that it expects."""

    def __call__(self, shard: Any, spans: list[Span]) -> None:
        """Put the shard away, and add what was done to `spans`."""


def write_shard(row: Row, write: ShardSink, ledger: Ledger = NO_LEDGER) -> Row:
    """The end of a pipeline: puts the shard away and tells the driver."""
    if is_failed(row):
        return row
    shard, spans = from_row(row, write.takes)
    before = len(spans)
    with ledger.turn(f"shard {shard.shard}", replica_name()) as turn:
        if turn.given_up:
            return failed_row(shard.shard, "write", JobError(turn.given_up))
        turn.enter("write")
        try:
            write(shard, spans)
        except OutputError:  # the place is at fault, not the shard
            raise
        except Exception as error:
            return failed_row(shard.shard, "write", error)
    for span in spans[before:]:
        stage_metrics().observe(span.stage, span.seconds, len(shard))
    done = empty_shard(shard.shard)
    done.warnings, done.fallbacks = shard.warnings, shard.fallbacks
    done.seconds, done.starts = shard.seconds, shard.starts
    return to_row(done, spans) | {"rows": np.array([len(shard)])}


def draft_pool(models: ModelSet, settings: DecodeSettings, placement: Placement) -> Pool:
    """Drafters alone: labels in, prefixes out."""
    from tandem_workers.stages.drafter import (
        Drafter,  # torch: the tasks that read and write, in which this module is, have none
    )

    return Pool(
        "draft",
        ShardRows,
        [partial(Drafter, models, settings)],
        placement.num_drafters,
        placement.drafter_nodes,
        placement.least_drafters,
    )


def refine_pool(models: ModelSet, settings: DecodeSettings, keep_tokens: bool, placement: Placement) -> Pool:
    """Refiners alone: prefixes in, pixels out."""
    from tandem_workers.stages.refiner import Refiner

    return Pool(
        "refine",
        PrefixShard,
        [partial(Refiner, models, settings, keep_tokens)],
        placement.num_refiners,
        placement.refiner_nodes,
        placement.least_refiners,
    )


def generate_pools(models: ModelSet, settings: DecodeSettings, keep_tokens: bool, placement: Placement) -> list[Pool]:
    """Both stages: two pools, colocated one whose actors run both, or mixed two, where some of the first run both."""
    draft = draft_pool(models, settings, placement)
    refine = refine_pool(models, settings, keep_tokens, placement)
    if placement.mode == "mixed":
        finishers = replace(
            draft,
            replicas=placement.num_drafters + placement.num_both,
            nodes=(*placement.drafter_nodes, *placement.both_nodes),
            further=refine.stages,
            finishers=placement.num_both,
        )
        return [finishers, replace(refine, passes=PixelShard)]
    if placement.mode == "colocated":
        return [Pool("draft + refine", ShardRows, [*draft.stages, *refine.stages], draft.replicas, draft.nodes)]
    return [draft, refine]


@dataclass(frozen=True)
class Writer:
    """Turns a shard into files, puts and commits them. Images are encoded first, drafts have no encoder."""

    encoder: Encoder | None
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


# An exception as the last line of a traceback shows it; remote errors arrive as such text only
RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.]*(?:Error|Exception|Killed|Interrupt)): (?P<message>.+)$", re.M)


# What Ray says of actors that it drops before they have a process. So it does where it cannot ask their driver whether
# they are still wanted: a driver that checks tokens refuses the calls of a cluster that has none.
NEVER_RAN = "The actor never ran"


def as_job_error(error: BaseException) -> JobError:
    """The cause of a failed run in one line: what a stage raised, ours before others', not Ray's wrapping."""
    raised = [m for m in RAISED.finditer(str(error)) if not m["type"].startswith("ray.")]
    ours = [m for m in raised if m["type"].startswith("tandem.errors.")]
    if ours:
        cause = ours[-1]["message"]
    elif raised:
        cause = f"{raised[-1]['type']}: {raised[-1]['message']}"
    elif NEVER_RAN in str(error) and os.environ.get("RAY_AUTH_MODE") == "token":
        return JobError("Ray dropped an actor before it ran", "RAY_AUTH_MODE is token here: is it so on the cluster?")
    else:
        cause = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return JobError(cause.strip(), "what was committed is kept; the same command goes on from there")
