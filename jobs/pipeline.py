"""Pipelines, all stages in order: labels -> draft -> refine + decode -> encode + store, and the parts of it.

Ray Data carries shards from stage to stage, recovers lost ones and holds back fast stages. One shard is one row
of one block, so that it travels whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import ray
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

from cluster.plan import Placement
from jobs.labels import LabelRows
from tandem.errors import JobError
from workers.drafter import DecodeSettings, Drafter
from workers.encoder import Encoder
from workers.manifest import Format, Manifest, store_shard
from workers.models import ModelSet
from workers.records import Row, Span, Stage, StageActor, from_row, replica_name, to_row
from workers.refiner import Refiner
from workers.shards import PixelShard, PrefixShard, ShardPlan, ShardRows
from workers.store import Store

# Shards that wait at one actor beside the one it works on: enough to never idle, few enough to hold back
SHARDS_IN_FLIGHT = 2


@dataclass(frozen=True)
class Pool:
    """One kind of actor: what comes in, the stages that it runs in order, and how many there are."""

    takes: type[ShardRows]
    stages: list[Callable[[], Stage]]
    replicas: int


@dataclass(frozen=True)
class Pipeline:
    """How shards are made: read by a task, worked on by pools of actors, stored by a task."""

    plan: ShardPlan
    read: Callable[[int], ShardRows]  # by shard id
    pools: list[Pool]
    write: ShardSink
    gpus_per_replica: int

    def run(self, shards: list[int]) -> Iterator[StoredShard]:
        """Make the given shards; yields each one as soon as it is committed, in any order."""
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = None  # a shard's pixels may be larger than Ray's usual block
        dataset = ray.data.range(len(shards), override_num_blocks=len(shards)).map_batches(
            partial(read_shard, shards=shards, read=self.read), batch_size=1, batch_format="numpy"
        )
        for pool in self.pools:
            dataset = dataset.map_batches(
                StageActor,
                fn_constructor_args=(pool.takes, pool.stages),
                batch_size=1,
                batch_format="numpy",
                compute=ActorPoolStrategy(size=pool.replicas, max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT),
                num_gpus=self.gpus_per_replica,
                num_cpus=0,  # actors set their own threads; a CPU each could starve the reading tasks
            )
        finish = partial(write_shard, write=self.write)
        dataset = dataset.map_batches(finish, batch_size=1, batch_format="numpy", num_cpus=1)
        try:
            for row in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=0):
                _, spans = from_row(row, ShardRows)
                yield StoredShard(int(row["shard"][0]), int(row["rows"][0]), tuple(spans))
        except ray.exceptions.RayError as error:
            raise as_job_error(error) from error


@dataclass(frozen=True)
class StoredShard:
    """A shard that has been committed, and who worked on it when."""

    shard: int
    num_rows: int
    spans: tuple[Span, ...]


def read_shard(batch: Row, shards: list[int], read: Callable[[int], ShardRows]) -> Row:
    """The head of a pipeline."""
    return to_row(read(shards[int(batch["id"][0])]), [])


class ShardSink(Protocol):
    """What becomes of a shard in the end. May be called twice for the same shard."""

    @property
    def takes(self) -> type[ShardRows]:
        """The form of shard that it expects."""

    def __call__(self, shard: Any, spans: list[Span]) -> None:
        """Put the shard away, and add what was done to `spans`."""


def write_shard(row: Row, write: ShardSink) -> Row:
    """The end of a pipeline: puts the shard away and tells the driver."""
    shard, spans = from_row(row, write.takes)
    write(shard, spans)
    empty = ShardRows(shard=shard.shard, index=np.zeros(0, np.int64), label=np.zeros(0, np.int32))
    return to_row(empty, spans) | {"rows": np.array([len(shard)])}


def draft_pool(models: ModelSet, settings: DecodeSettings, replicas: int) -> Pool:
    """Drafters alone: labels in, prefixes out."""
    return Pool(ShardRows, [partial(Drafter, models, settings)], replicas)


def refine_pool(models: ModelSet, settings: DecodeSettings, keep_tokens: bool, replicas: int) -> Pool:
    """Refiners alone: prefixes in, pixels out."""
    return Pool(PrefixShard, [partial(Refiner, models, settings, keep_tokens)], replicas)


def generate_pools(models: ModelSet, settings: DecodeSettings, keep_tokens: bool, placement: Placement) -> list[Pool]:
    """Both stages: two pools, or colocated one whose actors run both."""
    draft = draft_pool(models, settings, placement.num_drafters)
    refine = refine_pool(models, settings, keep_tokens, placement.num_refiners)
    if placement.mode == "colocated":
        return [Pool(ShardRows, [*draft.stages, *refine.stages], placement.num_drafters)]
    return [draft, refine]


@dataclass(frozen=True)
class ReadLabels:
    """Label rows of a shard, from the one copy in the object store."""

    rows: ray.ObjectRef
    plan: ShardPlan

    def __call__(self, shard: int) -> ShardRows:
        table: LabelRows = ray.get(self.rows)
        return table.shard(self.plan, shard)


@dataclass(frozen=True)
class Writer:
    """Turns a shard into files, puts and commits them. Images are encoded first, drafts have no encoder."""

    encoder: Encoder | None
    fmt: Format
    plan: ShardPlan
    store: Store

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
        store_shard(self.store, Manifest(self.store), encoded, self.fmt, self.plan)
        spans.append(Span("store", replica, began, time.time()))


# An exception as the last line of a traceback shows it; remote errors arrive as such text only
RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.]*(?:Error|Exception|Killed|Interrupt)): (?P<message>.+)$", re.M)


def as_job_error(error: BaseException) -> JobError:
    """The cause of a failed run in one line: what a stage raised, ours before others', not Ray's wrapping."""
    raised = [m for m in RAISED.finditer(str(error)) if not m["type"].startswith("ray.")]
    ours = [m for m in raised if m["type"].startswith("tandem.errors.")]
    if ours:
        cause = ours[-1]["message"]
    elif raised:
        cause = f"{raised[-1]['type']}: {raised[-1]['message']}"
    else:
        cause = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return JobError(cause.strip(), "what was committed is kept; the same command goes on from there")
