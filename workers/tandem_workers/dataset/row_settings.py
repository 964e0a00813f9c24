"""Settings of single rows of a shard, in place of the job's.

They are columns of the shard, named in `DecodeSettings.row_settings`, without missing values. A row's seed comes with
`seed_index`: the image is the same as that with this index in a job, or in an endpoint's response, with this seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tandem.config import SamplingConfig
from tandem_workers.dataset.shards import ShardRows

if TYPE_CHECKING:
    from tandem_workers.models.decode_settings import DecodeSettings

GUIDANCE_SETTINGS = ("cfg", "cfg_schedule", "refiner_cfg")
SAMPLING_SETTINGS = (*GUIDANCE_SETTINGS, "top_k", "top_p", "temperatures")
ROW_SETTINGS = (*SAMPLING_SETTINGS, "draft_steps", "seed")
SEED_INDEX = "seed_index"


def draft_steps_of(shard: ShardRows, settings: DecodeSettings) -> np.ndarray:
    """N of every row: int64 [n]."""
    if "draft_steps" not in settings.row_settings:
        return np.full(len(shard), settings.draft_steps, dtype=np.int64)
    return np.array(column(shard, "draft_steps"), dtype=np.int64)


def seeds_of(shard: ShardRows, settings: DecodeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Seed of every row and the index of its image under that seed: int64 [n] each."""
    if "seed" not in settings.row_settings:
        return np.full(len(shard), settings.seed, dtype=np.int64), shard.index
    return np.array(column(shard, "seed"), dtype=np.int64), np.array(column(shard, SEED_INDEX), dtype=np.int64)


def sampling_of(shard: ShardRows, settings: DecodeSettings) -> list[SamplingConfig]:
    """The sampling settings of each row."""
    names = [name for name in SAMPLING_SETTINGS if name in settings.row_settings]
    if not names:
        return [settings.sampling] * len(shard)
    rows = list(zip(*(map(hashable, column(shard, name)) for name in names), strict=True))
    known: dict[tuple[Any, ...], SamplingConfig] = {}
    for row in rows:
        if row not in known:
            known[row] = replace(settings.sampling, **dict(zip(names, row, strict=True)))
    return [known[row] for row in rows]


def own_settings(shard: ShardRows, row_settings: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """For each row its own settings, by name."""
    names = [*row_settings, *([SEED_INDEX] if "seed" in row_settings else [])]
    columns = [column(shard, name) for name in names]
    for row in range(len(shard)):
        yield {name: values[row] for name, values in zip(names, columns, strict=True)}


def column(shard: ShardRows, name: str) -> list[Any]:
    values = shard.extra[name]
    return values if isinstance(values, list) else values.to_pylist()  # type: ignore[union-attr]


def hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
