"""The adapter between our stages and Ray Data: shards as rows, and actors that run stages on them.

Ray Data may merge and split blocks, so a shard is a single row and every batch is one row. Only this file knows the
columns of a shard.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import ray

from tandem.errors import JobError, OutputError, TandemError
from tandem.timing import seconds_by_part
from tandem_workers.dataset.fallbacks import Fallback, Fallbacks, keep_warnings
from tandem_workers.dataset.ran import Ran
from tandem_workers.dataset.shards import FailedShard, ShardRows
from tandem_workers.dataset.start_times import ReplicaStart
from tandem_workers.stages.job_metrics import stage_metrics
from tandem_workers.stages.ledger import LOADING, NO_LEDGER, Ledger, TaskAttempt

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import RefBundle

Row = dict[str, np.ndarray]
ShardT = TypeVar("ShardT", bound=ShardRows)


class Stage(Protocol):
    """One kind of work on a shard. `name` is what summaries call it.

    A job makes its stages in the driver, out of settings alone. Each actor that runs them gets copies.
    """

    name: str

    def load(self) -> Stage:
        """Called once by each actor, before its first shard: weights go to the device here. Returns itself."""

    def __call__(self, shard: Any) -> ShardRows:
        """The same rows in the form that the next stage takes."""


ARRAYS = ("index", "label", "prefix", "tokens", "source", "drawn", "pixels")
READ_ONLY = ("pixels",)  # no stage writes to them


@dataclass(frozen=True)
class Span:
    """One stage's work on one shard: who did it and when, seconds since the epoch."""

    stage: str
    replica: str
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def to_row(shard: ShardRows, spans: Sequence[Span]) -> Row:
    """One row of a Ray Data block: arrays get a leading dimension of 1, everything else is bytes."""
    row: Row = {"shard": np.array([shard.shard], dtype=np.int64)}
    for name in ARRAYS:
        if (array := getattr(shard, name, None)) is not None:
            row[name] = np.ascontiguousarray(array)[None]
    notes = {
        "type": type(shard).__name__,
        "draft_steps": getattr(shard, "draft_steps", None),
        "cause": getattr(shard, "cause", None),
        "seconds": dict(shard.seconds),
        "ran": {stage: asdict(ran) for stage, ran in shard.ran.items()},
        "warnings": list(shard.warnings),
        "fallbacks": [asdict(fallback) for fallback in shard.fallbacks],
        "starts": [asdict(start) for start in shard.starts],
        "spans": [asdict(span) for span in spans],
    }
    row["notes"] = np.array([json.dumps(notes)], dtype=object)
    row["extra"] = np.array([table_bytes(shard.extra)], dtype=object)
    return row


def from_row(row: Row, kind: type[ShardT]) -> tuple[ShardT, list[Span]]:
    """The shard of a row, and the spans so far. Arrays are copies, as Ray's are read-only; but not pixels, which are
    large: they are Ray's own, in shared memory."""
    notes = json.loads(row["notes"][0])
    if notes["type"] != kind.__name__:
        raise TypeError(f"expected a row that holds a {kind.__name__}, got a {notes['type']}")
    arrays = {name: row[name][0] for name in ARRAYS if name in row}
    values: dict[str, Any] = {name: array if name in READ_ONLY else np.array(array) for name, array in arrays.items()}
    values |= {name: notes[name] for name in ("draft_steps", "cause") if notes[name] is not None}
    values |= {name: notes[name] for name in ("seconds", "warnings")}
    values["ran"] = {stage: Ran(**ran) for stage, ran in notes["ran"].items()}
    values["fallbacks"] = [Fallback(**fallback) for fallback in notes["fallbacks"]]
    values["starts"] = [ReplicaStart(**start) for start in notes["starts"]]
    shard = kind(shard=int(row["shard"][0]), extra=bytes_table(row["extra"][0]), **values)
    return shard, [Span(**span) for span in notes["spans"]]


def failed_row(
    shard: int,
    stage: str,
    error: Exception,
    warnings: Sequence[str] = (),
    fallbacks: Iterable[Fallback] = (),
) -> Row:
    """A shard that a stage could not make, as a row that later stages pass on."""
    text = " ".join(str(error).split())
    cause = text if isinstance(error, TandemError) else f"{type(error).__name__}: {text}"
    failed = FailedShard.of(empty_shard(shard), cause=f"{stage}: {cause}", warnings=warnings, fallbacks=[*fallbacks])
    return to_row(failed, [])


def is_failed(row: Row) -> bool:
    """Whether an earlier stage failed on this shard."""
    return holds(row, FailedShard)


def holds(row: Row, kind: type[ShardRows]) -> bool:
    """Whether a row holds a shard of this type."""
    return bool(json.loads(row["notes"][0])["type"] == kind.__name__)


def table_bytes(columns: Any) -> bytes:
    """Carried columns as an Arrow stream, which keeps their types."""
    if not columns:
        return b""
    table = pa.table(dict(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def bytes_table(data: bytes) -> dict[str, pa.Array]:
    if not data:
        return {}
    table = pa.ipc.open_stream(data).read_all()
    return {name: table[name].combine_chunks() for name in table.column_names}


def replica_name() -> str:
    """NODE/gpuID of this process, or NODE/pidID if it has no GPU."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    place = f"gpu{','.join(gpus)}" if gpus else f"pid{os.getpid()}"
    return f"{context.get_node_id()[:8]}/{place}"


FINISHER = "TANDEM_FINISHER"  # set in the environment of actors that finish their shards


class StageActor:
    """An actor of a pool: loads its stages once, then runs them in order on every shard.

    `further`: stages of the next pool, which finishers run as well; that pool passes such shards through.
    """

    def __init__(
        self,
        kind: type[ShardRows],
        stages: Sequence[Stage],
        further: Sequence[Stage] = (),
        passes: type[ShardRows] | None = None,
        ledger: Ledger = NO_LEDGER,
    ):
        self.kind, self.passes = kind, passes
        self.replica, self.ledger, self.is_new = replica_name(), ledger, True
        self.fallbacks = Fallbacks(self.replica)
        self.warned = keep_warnings(self.fallbacks.reasons.append)
        self.entered_s = time.time()
        with ledger.loading(self.replica) as attempt:
            if attempt.given_up:
                raise JobError(f"{ledger.pool}: an actor does not start: {attempt.given_up}")
            attempt.enter(LOADING)
            every = (*stages, *(further if FINISHER in os.environ else ()))
            self.stages = [self.load(stage) for stage in every]
        self.ready_s = time.time()

    def load(self, stage: Stage) -> Stage:
        loaded = stage.load()
        self.fallbacks.attribute(stage.name)
        return loaded

    def __call__(self, row: Row) -> Row:
        shard: ShardRows
        spans: list[Span]
        if "item" in row:  # the head of a pipeline: a number
            shard, spans = empty_shard(int(row["item"][0])), []
        elif is_failed(row) or (self.passes and holds(row, self.passes)):
            return row
        else:
            shard, spans = from_row(row, self.kind)
        with self.ledger.attempt(f"shard {shard.shard}", self.replica) as attempt:
            if attempt.given_up:
                return failed_row(shard.shard, self.ledger.pool, JobError(attempt.given_up), self.warned)
            return self.work(shard, spans, attempt)

    def work(self, shard: ShardRows, spans: list[Span], attempt: TaskAttempt) -> Row:
        """Run the stages on a shard, in order."""
        for stage in self.stages:
            attempt.enter(stage.name)
            began = time.time()
            try:
                shard = stage(shard)
            except OutputError:  # the store failed, and would fail for every other shard
                raise
            except Exception as error:  # of the shard or the model; the driver decides how many are too many
                if has_lost_its_device(error):
                    end_with(error)
                self.fallbacks.attribute(stage.name)
                fallbacks = *shard.fallbacks, *self.fallbacks.found
                return failed_row(shard.shard, stage.name, error, [*shard.warnings, *self.warned], fallbacks)
            self.fallbacks.attribute(stage.name)
            spans.append(Span(stage.name, self.replica, began, time.time()))
            stage_metrics().observe(stage.name, spans[-1].seconds, len(shard))
        shard.warnings = (*shard.warnings, *self.warned)
        shard.fallbacks = (*shard.fallbacks, *self.fallbacks.found)
        if self.is_new:
            shard.starts = [*shard.starts, self.start()]
            self.is_new = False
        return to_row(shard, spans)

    def start(self) -> ReplicaStart:
        """The phases of this actor's start."""
        entered_s, ready_s = self.entered_s, self.ready_s
        return ReplicaStart(self.ledger.pool, self.replica, entered_s, ready_s, seconds=seconds_by_part())


def has_lost_its_device(error: BaseException) -> bool:
    """Whether the GPU is unusable in this process, as after any CUDA error except out of memory. Does not use torch,
    which processes that only write do not import."""
    text = str(error)
    return "CUDA error" in text and "out of memory" not in text and "ALLOC_FAILED" not in text


def end_with(error: BaseException) -> NoReturn:
    """Exit this process, so that Ray restarts it and retries the shard. Its last printed line is the cause."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def empty_shard(shard: int) -> ShardRows:
    """A shard with a number and no rows."""
    return ShardRows(shard=shard, index=np.zeros(0, np.int64), label=np.zeros(0, np.int32))


def rows_of(bundle: RefBundle) -> Iterator[Row]:
    """Each block of a bundle that an execution has made, as arrays by column.

    `Dataset.iter_batches` does the same with two more threads, and every few seconds pickles its statistics with those
    of all blocks.
    """
    from ray.data.block import BlockAccessor  # imported late: actors and tasks need none of Ray Data

    blocks: list[Any] = bundle.block_refs
    for block in ray.get(blocks):
        yield BlockAccessor.for_block(block).to_batch_format("numpy")
