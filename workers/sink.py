"""The end of the Ray Data pipeline: whole shards into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from numpy.typing import NDArray
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from workers.formats import DatasetFormat
from workers.manifest import Manifest, ManifestEntry, store_shard
from workers.shards import EncodedShard, ShardPlan
from workers.store import Store

Decode = Callable[[dict[str, NDArray[Any]]], EncodedShard]


class ShardSink(Datasink[list[ManifestEntry]]):
    """One row is one shard. Ray Data may write a row twice; the store takes it once.

    Args:
        store, fmt: where to and how.
        plan: which rows each shard must have; anything else is a JobError.
        decode: makes the shard of a batch of one row, as `map_batches(batch_size=1)` would hand it over.
    """

    def __init__(self, store: Store, fmt: DatasetFormat, plan: ShardPlan, decode: Decode) -> None:
        self.store = store
        self.fmt = fmt
        self.plan = plan
        self.decode = decode

    def write(self, blocks: Iterable[Block], ctx: Any) -> list[ManifestEntry]:
        """Entries of the shards in these blocks."""
        manifest = Manifest(self.store)
        return [
            store_shard(self.store, manifest, self.decode(_one_row(block, row)), self.fmt, self.plan)
            for block in blocks
            for row in range(BlockAccessor.for_block(block).num_rows())
        ]


def _one_row(block: Block, row: int) -> dict[str, NDArray[Any]]:
    batch = BlockAccessor.for_block(block).slice(row, row + 1, copy=False)
    return dict(BlockAccessor.for_block(batch).to_numpy())
