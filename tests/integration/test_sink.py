"""The sink under Ray's own blocks. No cluster: a write task calls `write` with blocks, and so does this."""

import numpy as np
import pyarrow as pa
import pytest
from ray.data.block import BlockAccessor
from sample_shards import PLAN, encoded_shard, sample_format

from tandem.errors import JobError
from workers.manifest import Manifest
from workers.shards import ShardPlan
from workers.sink import ShardSink
from workers.store import open_store


def block(*ids: int) -> pa.Table:
    batch = {"shard": np.array(ids), "pixels": np.zeros((len(ids), 2, 3), np.uint8)}
    return BlockAccessor.batch_to_block(batch)


def test_every_row_of_every_block_is_one_shard(tmp_path):
    store, seen = open_store(str(tmp_path)), []

    def decode(row):
        seen.append({name: (array.dtype, array.shape) for name, array in row.items()})
        return encoded_shard(int(row["shard"][0]), PLAN)

    sink = ShardSink(store, sample_format(), PLAN, decode)
    entries = sink.write([block(2, 0), block(1)], ctx=None)
    assert [entry.shard for entry in entries] == [2, 0, 1]
    assert seen == [{"shard": (np.int64, (1,)), "pixels": (np.uint8, (1, 2, 3))}] * 3
    assert Manifest(store).committed() == {0, 1, 2}
    again = sink.write([block(0)], ctx=None)  # Ray Data retries whole tasks
    assert again[0].to_json() == entries[1].to_json()


def test_a_merged_shard_is_refused(tmp_path):
    sink = ShardSink(
        open_store(str(tmp_path)), sample_format(), PLAN, lambda row: encoded_shard(0, ShardPlan(10, 8))
    )
    with pytest.raises(JobError, match="got 8 rows"):
        sink.write([block(0)], ctx=None)
