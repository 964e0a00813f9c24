"""The refine stage: prefixes of token ids in, pixels out."""

from __future__ import annotations

import time

import numpy as np
import torch

from tandem.collaborative import decode, refine
from tandem.errors import JobError
from tandem.prefix import Prefix, to_tokens
from workers.drafter import DecodeSettings, fixed_batches
from workers.models import DTYPES, ModelSet, load_tokenizer, load_transformer, pick_device
from workers.shards import PixelShard, PrefixShard


class Refiner:
    """Holds the refiner and the VQVAE on one device. `__call__` takes prefixes and returns pixels."""

    name = "refine"

    def __init__(self, models: ModelSet, settings: DecodeSettings, keep_tokens: bool = False):
        torch.set_num_threads(settings.threads)
        self.settings, self.keep_tokens, self.device = settings, keep_tokens, pick_device()
        dtype = DTYPES[settings.dtype]
        self.refiner = load_transformer(models.ref("refiner"), dtype, self.device, settings.how)
        self.vqvae = load_tokenizer(models.vqvae, models.drafter_config.patch_nums, dtype, self.device)

    def __call__(self, shard: PrefixShard) -> PixelShard:
        pyramid, sampling = self.refiner.config.pyramid, self.settings.sampling
        seconds = dict.fromkeys(("refine", "decode"), 0.0)
        pixels, tokens = [], []
        for batch in fixed_batches(shard, self.settings, pyramid.num_tokens, self.device):
            began = time.perf_counter()
            prefix = Prefix(shard.prefix[batch.rows_B], shard.draft_steps)
            ids_BL = refine(self.refiner, self.vqvae.quantize, batch.labels_B, batch.uniforms_BL, prefix, sampling)
            tokens.append(to_tokens(ids_BL)[: batch.num_rows])
            refined = time.perf_counter()
            pixels_B3HW = decode(self.vqvae, ids_BL)[: batch.num_rows]
            if not torch.isfinite(pixels_B3HW).all():
                raise JobError(f"shard {shard.shard}: the decoder made pixels that are not finite")
            pixels.append(to_uint8(pixels_B3HW))
            seconds["refine"] += refined - began
            seconds["decode"] += time.perf_counter() - refined
        return PixelShard.of(
            shard,
            pixels=np.concatenate(pixels),
            tokens=np.concatenate(tokens) if self.keep_tokens else None,
            seconds={**shard.seconds, **seconds},
        )


def to_uint8(pixels_B3HW: torch.Tensor) -> np.ndarray:
    """Pixels float [B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3], rounded to nearest."""
    return pixels_B3HW.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
