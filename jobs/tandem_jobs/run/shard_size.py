"""The number of images per shard: `--shard-size`, or a number that depends only on the job."""

from __future__ import annotations

from tandem_jobs.options.options import ShardOptions
from tandem_workers.dataset.shards import ShardPlan

MAX_SHARD_BATCHES = 16
SHARDS_AIMED_AT = 32


def plan_shards(options: ShardOptions, num_rows: int, batch: int) -> ShardPlan:
    """Shards of whole batches: about 32 shards for a small job, 16 batches a shard for a large one."""
    batches = min(MAX_SHARD_BATCHES, max(1, num_rows // (batch * SHARDS_AIMED_AT)))
    return ShardPlan(num_rows, options.shard_size or batch * batches)
