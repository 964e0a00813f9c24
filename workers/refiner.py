"""The refine stage: prefixes of token ids in, pixels out."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

from tandem.collaborative import decode, refine
from tandem.errors import JobError
from tandem.prefix import Prefix, to_tokens
from workers.decode_settings import DecodeSettings
from workers.halving import Halving
from workers.models import DTYPES, ModelSet, device_name, load_tokenizer, load_transformer, pick_device
from workers.ran import Ran
from workers.shard_batches import Batch, fixed_batches, in_row_order
from workers.shards import PixelShard, PrefixShard


class Refiner:
    """Holds the refiner and the VQVAE on one device. `__call__` takes prefixes and returns pixels."""

    name = "refine"

    def __init__(self, models: ModelSet, settings: DecodeSettings, keep_tokens: bool = False):
        torch.set_num_threads(settings.threads)
        self.settings, self.keep_tokens, self.device = settings, keep_tokens, pick_device(settings.on_gpu)
        dtype = DTYPES[settings.dtype]
        self.refiner = load_transformer(models.ref("refiner"), dtype, self.device, settings.how)
        self.vqvae = load_tokenizer(models.vqvae, models.drafter_config.patch_nums, dtype, self.device, settings.how)
        self.refining, self.decoding = Halving("refine", settings.batch), Halving("decode", settings.batch)

    def __call__(self, shard: PrefixShard) -> PixelShard:
        seconds = dict.fromkeys(("refine", "decode"), 0.0)
        batches, pixels, tokens = [], [], []
        pyramid = self.refiner.config.pyramid
        for batch in fixed_batches(shard, self.settings, pyramid.num_tokens, self.device):
            began = time.perf_counter()
            prefix_BP = shard.prefix[batch.rows_B, : pyramid.offsets[batch.draft_steps]]
            work = partial(self.refine, batch, prefix_BP)
            batches.append(batch)
            ids_BL = torch.cat(self.refining(work, self.settings.batch))
            tokens.append(to_tokens(ids_BL)[: batch.num_rows])
            refined = time.perf_counter()
            images = np.concatenate(self.decoding(partial(self.decode, ids_BL), self.settings.batch))
            pixels.append(images[: batch.num_rows])
            seconds["refine"] += refined - began
            seconds["decode"] += time.perf_counter() - refined
        return PixelShard.of(
            shard,
            pixels=in_row_order(pixels, batches),
            tokens=in_row_order(tokens, batches) if self.keep_tokens else None,
            seconds={**shard.seconds, **seconds},
            ran={**shard.ran, **self.ran},
        )

    @property
    def ran(self) -> dict[str, Ran]:
        """How its two stages run by now."""
        var, vqvae, name = self.refiner, self.vqvae, device_name(self.device)
        dtype = vqvae.post_quant_conv.weight.dtype
        return {
            "refine": Ran.of(name, var.dtype, [var.fused, vqvae.quantize.fused], var.graphs, self.refining.size),
            "decode": Ran.of(name, dtype, [vqvae.fused, vqvae.quantize.fused], vqvae.graphs, self.decoding.size),
        }

    def refine(self, batch: Batch, prefix_BP: np.ndarray, some: slice) -> torch.Tensor:
        """Token ids of some rows of a batch: int64 [b, L]."""
        prefix = Prefix(prefix_BP[some], batch.draft_steps)
        labels_B, uniforms_BL = batch.labels_B[some], batch.uniforms_BL[some]
        return refine(self.refiner, self.vqvae.quantize, labels_B, uniforms_BL, prefix, batch.sampling[some])

    def decode(self, ids_BL: torch.Tensor, some: slice) -> np.ndarray:
        """Pixels of some rows: uint8 [b, H, W, 3]."""
        pixels_B3HW = decode(self.vqvae, ids_BL[some])
        if not torch.isfinite(pixels_B3HW).all():
            raise JobError("the decoder made pixels that are not finite")
        return to_uint8(pixels_B3HW)


def to_uint8(pixels_B3HW: torch.Tensor) -> np.ndarray:
    """Pixels float [B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3], rounded to nearest."""
    return pixels_B3HW.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
