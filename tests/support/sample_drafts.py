"""Small drafts for tests, as `tandem draft` leaves them: random tokens through the real format and the real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from support.tiny_models import CLASS_NAMES, NUM_CLASSES, VOCAB, tiny_var
from tandem.config import to_dict
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.closing import close_dataset
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.drafts import KIND, DraftFormat, Drafts, open_drafts
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import PrefixShard, ShardPlan
from tandem_workers.dataset.token_columns import cell_bytes
from tandem_workers.storage.places import open_store

STEPS = 2
DECODING = {"seed": 5, "draft_steps": STEPS, "sampling": {}}


def prefix_shard(shard: int, plan: ShardPlan, edits: bool = False) -> PrefixShard:
    index = np.array(plan.indices(shard), dtype=np.int64)
    pyramid, draw = tiny_var(1, 0).config.pyramid, np.random.default_rng(shard + 100)
    length, cells = pyramid.offsets[STEPS], cell_bytes(pyramid.grid)
    return PrefixShard(
        shard=shard,
        index=index,
        label=(index % NUM_CLASSES).astype(np.int32),
        prefix=np.random.default_rng(shard).integers(0, VOCAB, (len(index), length), dtype=np.uint16),
        draft_steps=STEPS,
        source=draw.integers(0, VOCAB, (len(index), pyramid.num_tokens), dtype=np.uint16) if edits else None,
        drawn=draw.integers(0, 256, (len(index), cells), dtype=np.uint8) if edits else None,
        extra={"note": pa.array([f"no {i}" for i in index])},
    )


def drafts_of(
    folder: Path,
    num_rows: int,
    names: tuple[str, ...] = CLASS_NAMES,
    vqvae: str = "v" * 64,
    edit: dict[str, Any] | None = None,
    **drafter: Any,
) -> Drafts:
    """Finished drafts in shards of 4 rows. `vqvae` is the SHA-256 of theirs; `edit` says where the pictures of edits
    are; `drafter` are further fields."""
    store, plan = open_store(str(folder)), ShardPlan(num_rows, 4)
    hashes = {"drafter": "d" * 64, "vqvae": vqvae}
    identity = {"kind": KIND, "weights_sha256": hashes, "decoding": DECODING, "rows": num_rows, "shard_size": 4}
    about = {"source": "d.pth", "config": to_dict(tiny_var(1, 0).config), **drafter}
    info: dict[str, Any] = {"drafter": about, "class_names": list(names)}
    if edit is not None:
        identity["edit"] = {}
        info |= {"edit": edit, "class_names": [*names, "none"]}
    open_job(store, identity, info)
    for shard in range(plan.num_shards):
        store_shard(store, Manifest(store), prefix_shard(shard, plan, edit is not None), DraftFormat(), plan)
    close_dataset(Manifest(store), plan.num_shards)
    return open_drafts(store)
