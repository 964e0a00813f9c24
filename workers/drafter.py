"""The draft stage: labels in, prefixes of token ids out."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

from tandem.collaborative import draft
from workers.decode_settings import DecodeSettings
from workers.halving import Halving
from workers.models import DTYPES, ModelSet, device_name, load_tokenizer, load_transformer, pick_device
from workers.ran import Ran
from workers.row_settings import draft_steps_of
from workers.shard_batches import Batch, fixed_batches
from workers.shards import PrefixShard, ShardRows


class Drafter:
    """Holds the drafter's weights on one device. `__call__` takes a shard of labels and returns its prefixes."""

    name = "draft"

    def __init__(self, models: ModelSet, settings: DecodeSettings):
        torch.set_num_threads(settings.threads)
        self.settings, self.device = settings, pick_device(settings.on_gpu)
        dtype = DTYPES[settings.dtype]
        self.drafter = load_transformer(models.drafter, dtype, self.device, settings.how)
        patch_nums = models.drafter_config.patch_nums
        self.quantizer = load_tokenizer(models.vqvae, patch_nums, dtype, self.device, settings.how).quantize
        self.halving = Halving(self.name, settings.batch)

    def __call__(self, shard: ShardRows) -> PrefixShard:
        began = time.perf_counter()
        pyramid = self.drafter.config.pyramid
        most = int(draft_steps_of(shard, self.settings).max(initial=1))
        prefix = np.zeros((len(shard), pyramid.offsets[most]), np.uint16)  # rows of a smaller N end in zeros
        for batch in fixed_batches(shard, self.settings, pyramid.num_tokens, self.device):
            tokens = np.concatenate(self.halving(partial(self.draft, batch), self.settings.batch))
            prefix[batch.counted, : tokens.shape[1]] = tokens[: batch.num_rows]
        seconds = {**shard.seconds, self.name: time.perf_counter() - began}
        return PrefixShard.of(
            shard, prefix=prefix, draft_steps=most, seconds=seconds, ran={**shard.ran, self.name: self.ran}
        )

    @property
    def ran(self) -> Ran:
        """How it runs by now."""
        var, name = self.drafter, device_name(self.device)
        return Ran.of(name, var.dtype, [var.fused, self.quantizer.fused], var.graphs, self.halving.size)

    def draft(self, batch: Batch, some: slice) -> np.ndarray:
        """Prefixes of some rows of a batch: uint16 [b, P]."""
        labels_B, uniforms_BL = batch.labels_B[some], batch.uniforms_BL[some]
        prefix = draft(self.drafter, self.quantizer, labels_B, uniforms_BL, batch.draft_steps, batch.sampling[some])
        return prefix.tokens
