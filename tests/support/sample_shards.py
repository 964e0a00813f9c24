"""Small shards and datasets for tests: random pixels through the real encoder and the real store."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from tandem.images import Provenance
from tandem_workers.dataset.card import CardInfo, closing_files
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.closing import close_dataset
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.formats import DatasetFormat
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import EncodedShard, PixelShard, ShardPlan
from tandem_workers.stages.encoder import ImageEncoder
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store

# A name that datasets would take for a split, one that stands twice, one that breaks tables and paths.
CLASS_NAMES = ("train", "crane", "a|b/../c", "crane", "test set", "é<&>")
LABELS = (0, 1, 3, 5)  # not all classes: readers that number folders would be wrong from label 3 on
SIZE = 12
PLAN = ShardPlan(10, 4)  # a short last shard
PROVENANCE = Provenance("tandem 0.0", "d" * 64, "r" * 64, "v" * 64, seed=7, draft_steps=3)
# Of a manifest, as an older version wrote it
ENTRY = {
    "shard": 3,
    "rows": 1,
    "first_index": 3,
    "last_index": 3,
    "labels": {"5": 1},
    "files": [{"path": "shards/00003.tar", "size_bytes": 10, "sha256": "a" * 64}],
    "size_bytes": 10,
    "seconds": {"draft": 0.5},
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sample_format(name="webdataset", codec="png") -> DatasetFormat:
    return DatasetFormat(name, codec, CLASS_NAMES, seed=7, draft_steps=3)


def pixel_shard(shard: int, plan: ShardPlan, tokens: bool = False, noise: int = 0) -> PixelShard:
    index = np.array(plan.indices(shard), dtype=np.int64)
    n, rng = len(index), np.random.default_rng((shard, noise))
    return PixelShard(
        shard=shard,
        index=index,
        label=np.array([LABELS[i % len(LABELS)] for i in index], dtype=np.int32),
        pixels=rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8),
        tokens=rng.integers(0, 4096, (n, 5), dtype=np.uint16) if tokens else None,
        extra={
            "note": pa.array([None if i % 2 else f"no {i}" for i in index], pa.string()),
            "weight": pa.array([i / 2 if i else float("nan") for i in index], pa.float32()),
        },
        seconds={"draft": 0.5},
    )


def encoded_shard(shard: int, plan: ShardPlan, codec="png", tokens=False, noise=0) -> EncodedShard:
    return ImageEncoder(codec, 90, PROVENANCE, CLASS_NAMES)(pixel_shard(shard, plan, tokens, noise))


def sample_dataset(root: Path, name: str, codec="png", plan=PLAN, tokens=False) -> Store:
    """A finished dataset of `plan` under `root`."""
    shards = [encoded_shard(shard, plan, codec, tokens) for shard in range(plan.num_shards)]
    return finished(root, sample_format(name, codec), shards, plan)


def dataset_with(root: Path, name: str, carried: pa.Table, tokens=False) -> Store:
    """A finished dataset that carries the columns of a table, an image each row."""
    plan = ShardPlan(len(carried), 4)
    shards = [encoded_shard(shard, plan, tokens=tokens) for shard in range(plan.num_shards)]
    for shard in shards:
        part = carried.slice(shard.index[0], len(shard))
        shard.extra = {column: part[column].combine_chunks() for column in part.column_names}
    return finished(root, sample_format(name), shards, plan)


def finished(root: Path | str, fmt: DatasetFormat, shards: list[EncodedShard], plan: ShardPlan) -> Store:
    store, tokens = open_store(str(root)), shards[0].tokens is not None
    open_job(store, {"format": fmt.name, "rows": plan.num_rows, "shard_size": plan.shard_size})
    for shard in shards:
        store_shard(store, Manifest(store), shard, fmt, plan)
    models, schema = {"drafter": ("embedded", "d" * 64)}, pa.table(shards[0].extra).schema
    info = CardInfo(fmt, SIZE, models, {"cfg": 1.5}, "tandem generate", "tandem 0.0", tokens, schema)
    close_dataset(Manifest(store), plan.num_shards, render=partial(closing_files, store, info, 0))
    return store
