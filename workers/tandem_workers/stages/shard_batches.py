"""Cuts a shard into batches of one shape, in the same way on every replica."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tandem.checks import check_values
from tandem.config import SamplingConfig, VarConfig
from tandem.edit_source import Source
from tandem.sampling import uniforms
from tandem.transfers import upload
from tandem_workers.dataset.row_settings import draft_steps_of, sampling_of, seeds_of
from tandem_workers.dataset.shards import ShardRows

if TYPE_CHECKING:
    from tandem_workers.models.decode_settings import DecodeSettings


@dataclass(frozen=True)
class Batch:
    """Rows `rows_B` of a shard, all with one N. The first `num_rows` count; the others are padding."""

    rows_B: np.ndarray
    num_rows: int
    labels_B: Tensor
    uniforms_BL: Tensor
    draft_steps: int
    sampling: Sequence[SamplingConfig]
    source: Source | None = None  # of edits

    @property
    def counted(self) -> np.ndarray:
        """The rows of the shard without padding."""
        return self.rows_B[: self.num_rows]


def fixed_batches(
    shard: ShardRows, settings: DecodeSettings, config: VarConfig, device: torch.device
) -> Iterator[Batch]:
    """Cut a shard into batches of one shape: grouped by N, the smallest N first, and in order within a group.
    A short batch is padded with its last row, so an image always has the same position in the same batch, and its
    bytes do not depend on replicas or placement. InputError for a label that the model does not have."""
    steps, sampling = draft_steps_of(shard, settings), sampling_of(shard, settings)
    seed, index = seeds_of(shard, settings)
    for n in np.unique(steps).tolist():
        rows = np.flatnonzero(steps == n)
        for start in range(0, len(rows), settings.batch):
            chosen = rows[start : start + settings.batch]
            rows_B = np.pad(chosen, (0, settings.batch - len(chosen)), mode="edge")
            labels_B = torch.from_numpy(shard.label[rows_B].astype(np.int64))
            uniforms_BL = uniforms(seed[rows_B], index[rows_B], config.pyramid.num_tokens)
            source = source_of_rows(shard, rows_B, config.pyramid.grid, device)
            classes = config.num_classes + (source is not None)  # edits may have no class
            check_values(classes, labels_B, uniforms_BL)  # on the host, without waiting for the device
            yield Batch(
                rows_B,
                len(chosen),
                upload(labels_B, device),
                upload(uniforms_BL, device),
                n,
                [sampling[row] for row in rows_B],
                source,
            )


def source_of_rows(shard: ShardRows, rows_B: np.ndarray, grid: int, device: torch.device) -> Source | None:
    """What the edits in these rows keep of their pictures; None for a shard without edits."""
    if shard.source is None or shard.drawn is None:
        return None
    bits = np.unpackbits(shard.drawn[rows_B], axis=1, count=grid * grid).astype(bool)
    ids_BL = torch.from_numpy(shard.source[rows_B].astype(np.int64))
    return Source(upload(ids_BL, device), upload(torch.from_numpy(bits.reshape(-1, grid, grid)), device))


class RowsOfShard:
    """An array of the rows of a shard, filled batch by batch while the device works on the next batch."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.array: np.ndarray | None = None

    def put(self, batch: Batch, values_B: np.ndarray) -> None:
        """Store the results of a batch at its rows, without padding."""
        if self.array is None:
            self.array = np.empty((self.num_rows, *values_B.shape[1:]), values_B.dtype)
        self.array[batch.counted] = values_B[: batch.num_rows]
