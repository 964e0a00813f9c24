"""Rows, settings and full devices for drafter and refiner as stages."""

from __future__ import annotations

import numpy as np
import torch

from support.tiny_models import NUM_CLASSES
from tandem.config import SamplingConfig
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.models.decode_settings import DecodeSettings

SAMPLING = SamplingConfig(cfg=2.0, top_k=20, top_p=0.95)


def settings(**changes) -> DecodeSettings:
    values = {"seed": 3, "draft_steps": 2, "sampling": SAMPLING, "batch": 3, "dtype": "float32", "threads": 1}
    return DecodeSettings(**values | changes)


def rows(first: int, count: int, shard: int = 0) -> ShardRows:
    index = np.arange(first, first + count, dtype=np.int64)
    return ShardRows(shard=shard, index=index, label=(index % NUM_CLASSES).astype(np.int32))


def with_room_for(room: int, work):
    """A step of decoding whose first tensor by number of rows is too large for the device."""

    def limited(*arguments, **more):
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        if len(tensors[0]) > room:
            raise torch.OutOfMemoryError("made up")
        return work(*arguments, **more)

    return limited
