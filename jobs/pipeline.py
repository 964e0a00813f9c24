"""The pipeline, all stages in order: labels -> draft -> refine + decode -> encode + store.

Ray Data carries shards from stage to stage, recovers lost ones and holds back fast stages. One shard is one row
of one block, so that it travels whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from workers.formats import DatasetFormat
from workers.manifest import Manifest, store_shard
from workers.models import ModelSet
from workers.records import Row, Span, StageActor, from_row, replica_name, to_row
from workers.refiner import Refiner
from workers.shards import PixelShard, PrefixShard, ShardPlan, ShardRows
from workers.store import Store

# Shards that wait at one actor beside the one it works on: enough to never idle, few enough to hold back
SHARDS_IN_FLIGHT = 2


@dataclass(frozen=True)
class Pipeline:
    """All that the stages need. Nothing here changes while the job runs."""

    rows: LabelRows
    plan: ShardPlan
    models: ModelSet
    settings: DecodeSettings
    placement: Placement
    encoder: Encoder
    fmt: DatasetFormat
    store: Store
    keep_tokens: bool

    def run(self, shards: list[int]) -> Iterator[StoredShard]:
        """Make the given shards; yields each one as soon as it is committed, in any order."""
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = None  # a shard's pixels may be larger than Ray's usual block
        dataset = ray.data.range(len(shards), override_num_blocks=len(shards)).map_batches(
            partial(read_labels, rows=ray.put(self.rows), plan=self.plan, shards=shards),
            batch_size=1,
            batch_format="numpy",
        )
        for kind, stages, replicas in self.actor_stages():
            dataset = dataset.map_batches(
                StageActor,
                fn_constructor_args=(kind, stages),
                batch_size=1,
                batch_format="numpy",
                compute=ActorPoolStrategy(size=replicas, max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT),
                num_gpus=self.placement.gpus_per_replica,
                num_cpus=0,  # actors set their own threads; a CPU each could starve the reading tasks
            )
        finish = partial(encode_and_store, encoder=self.encoder, fmt=self.fmt, plan=self.plan, store=self.store)
        dataset = dataset.map_batches(finish, batch_size=1, batch_format="numpy", num_cpus=1)
        try:
            for row in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=0):
                _, spans = from_row(row, ShardRows)
                yield StoredShard(int(row["shard"][0]), int(row["rows"][0]), tuple(spans))
        except ray.exceptions.RayError as error:
            raise as_job_error(error) from error

    def actor_stages(self) -> list[tuple[type[ShardRows], list[Any], int]]:
        """(what comes in, stages of one actor, actors) of each pool. Colocated is one pool with both stages."""
        draft = partial(Drafter, self.models, self.settings)
        refine = partial(Refiner, self.models, self.settings, self.keep_tokens)
        if self.placement.mode == "colocated":
            return [(ShardRows, [draft, refine], self.placement.num_drafters)]
        return [
            (ShardRows, [draft], self.placement.num_drafters),
            (PrefixShard, [refine], self.placement.num_refiners),
        ]


@dataclass(frozen=True)
class StoredShard:
    """A shard that has been committed, and who worked on it when."""

    shard: int
    num_rows: int
    spans: tuple[Span, ...]


def read_labels(batch: Row, rows: ray.ObjectRef, plan: ShardPlan, shards: list[int]) -> Row:
    """The head of the pipeline: the label rows of one shard, from the one copy in the object store."""
    table: LabelRows = ray.get(rows)
    return to_row(table.shard(plan, shards[int(batch["id"][0])]), [])


def encode_and_store(row: Row, encoder: Encoder, fmt: DatasetFormat, plan: ShardPlan, store: Store) -> Row:
    """The CPU end of the pipeline: pixels to image files, the shard put and committed. May run twice."""
    shard, spans = from_row(row, PixelShard)
    replica = replica_name()
    began = time.time()
    encoded = encoder(shard)
    done = time.time()
    store_shard(store, Manifest(store), encoded, fmt, plan)
    spans += [Span("encode", replica, began, done), Span("store", replica, done, time.time())]
    empty = ShardRows(shard=shard.shard, index=np.zeros(0, np.int64), label=np.zeros(0, np.int32))
    return to_row(empty, spans) | {"rows": np.array([len(shard)])}


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
