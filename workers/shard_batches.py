"""Batches of one shape, cut from a shard: the same cuts whatever replica works on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tandem.config import SamplingConfig
from tandem.sampling import uniforms
from workers.row_settings import draft_steps_of, sampling_of, seeds_of
from workers.shards import ShardRows

if TYPE_CHECKING:
    from workers.decode_settings import DecodeSettings


@dataclass(frozen=True)
class Batch:
    """Rows `rows_B` of a shard, of which the first `num_rows` count; the others fill it up. All have one N."""

    rows_B: np.ndarray
    num_rows: int
    labels_B: Tensor
    uniforms_BL: Tensor
    draft_steps: int
    sampling: Sequence[SamplingConfig]

    @property
    def counted(self) -> np.ndarray:
        """The rows of the shard that it is about."""
        return self.rows_B[: self.num_rows]


def fixed_batches(shard: ShardRows, settings: DecodeSettings, num_tokens: int, device: torch.device) -> Iterator[Batch]:
    """Cut a shard into batches of one shape: rows of one N after the other, the smallest N first, each in their order.
    A short batch is padded with its last row, so an image always stands in the same row beside the same company, and
    its bytes do not depend on replicas or placement."""
    steps, sampling = draft_steps_of(shard, settings), sampling_of(shard, settings)
    seed, index = seeds_of(shard, settings)
    for n in np.unique(steps).tolist():
        rows = np.flatnonzero(steps == n)
        for start in range(0, len(rows), settings.batch):
            some = rows[start : start + settings.batch]
            rows_B = np.pad(some, (0, settings.batch - len(some)), mode="edge")
            yield Batch(
                rows_B,
                len(some),
                torch.from_numpy(shard.label[rows_B].astype(np.int64)).to(device),
                uniforms(seed[rows_B], index[rows_B], num_tokens).to(device),
                n,
                [sampling[row] for row in rows_B],
            )


def in_row_order(parts: Sequence[np.ndarray], batches: Sequence[Batch]) -> np.ndarray:
    """What batches gave for the rows that count, as rows of the shard."""
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for part, batch in zip(parts, batches, strict=True):
        whole[batch.counted] = part
    return whole
