"""Shards of the model of the commit protocol, each made once; whose content a file has is known by its bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from support.sample_drafts import prefix_shard
from support.sample_shards import encoded_shard, sample_format
from support.tiny_models import tiny_var
from tandem_workers.dataset.drafts import DraftFormat
from tandem_workers.dataset.shards import ShardPlan

PLAN = ShardPlan(5, 2)
ORIGINS: dict[bytes, tuple[int, int]] = {}  # seed and shard by content


@cache
def pictures(seed: int, shard: int, picture: int) -> Any:
    """A shard of a job of this seed; `picture` numbers the GPUs that make different ones of it."""
    encoded = encoded_shard(shard, PLAN, noise=1000 * seed + picture)
    extra = {**encoded.extra, "origin": [f"{seed}"] * len(encoded)}
    return type(encoded).of(encoded, images=encoded.images, extra=extra)


@cache
def drafted(seed: int, shard: int) -> Any:
    """The drafts of a shard by a job of this seed."""
    prefix = prefix_shard(shard, PLAN)
    moved = (prefix.prefix + np.uint16(seed)) % 16
    return replace(prefix, prefix=moved.astype(np.uint16), extra={"origin": [f"{seed}"] * len(prefix)})


@cache
def drafter_config() -> Any:
    return tiny_var(1, 0).config


@cache
def cached_format(name: str) -> Any:
    """The real format, or that of drafts; files of equal shards are made once."""
    fmt: Any = DraftFormat() if name == "drafts" else sample_format(name)
    made: dict[Any, list[tuple[str, bytes]]] = {}

    def files(shard: Any, tag: str = "") -> list[tuple[str, bytes]]:
        seed = int(shard.extra["origin"][0].as_py())
        key = (seed, shard.shard, tag, *map(hash, getattr(shard, "images", ())))
        if key not in made:
            made[key] = fmt.files(shard, tag)
            ORIGINS.update({data: (seed, shard.shard) for _, data in made[key]})
        return made[key]

    return SimpleNamespace(files=files)


def seed_of(identity: dict[str, Any]) -> int:
    """Seed of the contents that a job makes; of refined drafts both count."""
    if "drafts" in identity:
        return 100 * seed_of(identity["drafts"]) + int(identity["seed"])
    return int(identity.get("seed", identity.get("decoding", {}).get("seed")))
