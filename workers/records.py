"""The adapter between our stages and Ray Data: a shard as one row, and actors and tasks that run stages on it.

Ray Data merges and splits blocks to suit itself, so a shard is a single row and every batch is one row.
Only this file knows how a shard looks as columns.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import ray

from workers.shards import ShardRows

Row = dict[str, np.ndarray]
ShardT = TypeVar("ShardT", bound=ShardRows)


class Stage(Protocol):
    """One kind of work on a shard. `name` is what summaries call it."""

    name: str

    def __call__(self, shard: Any) -> ShardRows: ...


ARRAYS = ("index", "label", "prefix", "tokens", "pixels")


@dataclass(frozen=True)
class Span:
    """One stage's work on one shard: who did it and when, seconds since the epoch."""

    stage: str
    replica: str
    start_s: float
    end_s: float


def to_row(shard: ShardRows, spans: Sequence[Span]) -> Row:
    """One row of a Ray Data block: arrays keep their shape behind a leading 1, the rest travels as bytes."""
    row: Row = {"shard": np.array([shard.shard], dtype=np.int64)}
    for name in ARRAYS:
        if (array := getattr(shard, name, None)) is not None:
            row[name] = np.ascontiguousarray(array)[None]
    notes = {
        "type": type(shard).__name__,
        "draft_steps": getattr(shard, "draft_steps", None),
        "seconds": dict(shard.seconds),
        "spans": [asdict(span) for span in spans],
    }
    row["notes"] = np.array([json.dumps(notes)], dtype=object)
    row["extra"] = np.array([table_bytes(shard.extra)], dtype=object)
    return row


def from_row(row: Row, kind: type[ShardT]) -> tuple[ShardT, list[Span]]:
    """The shard of a row, and what was done to it so far. Arrays are copies: Ray's are read-only."""
    notes = json.loads(row["notes"][0])
    if notes["type"] != kind.__name__:
        raise TypeError(f"expected a row that holds a {kind.__name__}, got a {notes['type']}")
    values: dict[str, Any] = {name: np.array(row[name][0]) for name in ARRAYS if name in row}
    if notes["draft_steps"] is not None:
        values["draft_steps"] = notes["draft_steps"]
    shard = kind(shard=int(row["shard"][0]), extra=bytes_table(row["extra"][0]), seconds=notes["seconds"], **values)
    return shard, [Span(**span) for span in notes["spans"]]


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
    """(node, GPU) of this process, or (node, process) where it has no GPU."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    place = f"gpu{','.join(gpus)}" if gpus else f"pid{os.getpid()}"
    return f"{context.get_node_id()[:8]}/{place}"


class StageActor:
    """An actor of a pool: loads its stages once, then runs them in order on every shard that comes."""

    def __init__(self, kind: type[ShardRows], factories: Sequence[Callable[[], Stage]]):
        self.kind = kind
        self.stages = [factory() for factory in factories]
        self.replica = replica_name()

    def __call__(self, row: Row) -> Row:
        shard, spans = from_row(row, self.kind)
        for stage in self.stages:
            began = time.time()
            shard = stage(shard)
            spans.append(Span(stage.name, self.replica, began, time.time()))
        return to_row(shard, spans)
