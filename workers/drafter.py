"""The draft stage: labels in, prefixes of token ids out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tandem.assembly import PLAIN, Preparation
from tandem.collaborative import draft
from tandem.config import SamplingConfig
from tandem.sampling import uniforms
from workers.halving import Halving
from workers.models import DTYPES, ModelSet, load_tokenizer, load_transformer, pick_device
from workers.shards import PrefixShard, ShardRows


@dataclass(frozen=True)
class DecodeSettings:
    """What both stages have to agree on. All of it may change bytes, but for CUDA graphs."""

    seed: int
    draft_steps: int
    sampling: SamplingConfig
    batch: int  # rows of every forward; a short last batch is padded to it
    dtype: str
    threads: int  # CPU threads of an actor, set explicitly: results depend on it
    how: Preparation = PLAIN  # of both transformers


@dataclass(frozen=True)
class Batch:
    """Always the same cut of a shard: its rows `rows_B`, of which the first `num_rows` count."""

    rows_B: np.ndarray
    num_rows: int
    labels_B: Tensor
    uniforms_BL: Tensor


def fixed_batches(shard: ShardRows, settings: DecodeSettings, num_tokens: int, device: torch.device) -> Iterator[Batch]:
    """Cut a shard into batches of one shape. The last is padded with its last row, so an image always stands in
    the same row beside the same company, and its bytes do not depend on replicas or placement."""
    for start in range(0, len(shard), settings.batch):
        stop = min(start + settings.batch, len(shard))
        rows = np.minimum(np.arange(start, start + settings.batch), stop - 1)
        yield Batch(
            rows,
            stop - start,
            torch.from_numpy(shard.label[rows].astype(np.int64)).to(device),
            uniforms(settings.seed, shard.index[rows], num_tokens).to(device),
        )


class Drafter:
    """Holds the drafter's weights on one device. `__call__` takes a shard of labels and returns its prefixes."""

    name = "draft"

    def __init__(self, models: ModelSet, settings: DecodeSettings):
        torch.set_num_threads(settings.threads)
        self.settings, self.device = settings, pick_device()
        dtype = DTYPES[settings.dtype]
        self.drafter = load_transformer(models.drafter, dtype, self.device, settings.how)
        patch_nums = models.drafter_config.patch_nums
        self.quantizer = load_tokenizer(models.vqvae, patch_nums, dtype, self.device).quantize
        self.halving = Halving(self.name, settings.batch)

    def __call__(self, shard: ShardRows) -> PrefixShard:
        began = time.perf_counter()
        num_tokens = self.drafter.config.pyramid.num_tokens
        steps = self.settings.draft_steps
        prefixes = []
        for batch in fixed_batches(shard, self.settings, num_tokens, self.device):
            tokens = np.concatenate(self.halving(partial(self.draft, batch), self.settings.batch))
            prefixes.append(tokens[: batch.num_rows])
        seconds = {**shard.seconds, self.name: time.perf_counter() - began}
        return PrefixShard.of(shard, prefix=np.concatenate(prefixes), draft_steps=steps, seconds=seconds)

    def draft(self, batch: Batch, some: slice) -> np.ndarray:
        """Prefixes of some rows of a batch: uint16 [b, P]."""
        labels_B, uniforms_BL = batch.labels_B[some], batch.uniforms_BL[some]
        steps, sampling = self.settings.draft_steps, self.settings.sampling
        return draft(self.drafter, self.quantizer, labels_B, uniforms_BL, steps, sampling).tokens
