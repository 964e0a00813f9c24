"""The refine stage: prefixes of token ids in, pixels out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from tandem.collaborative import begin_refine, decode
from tandem.errors import JobError
from tandem.prefix import Prefix
from tandem.vqvae import rounded
from tandem_workers.dataset.ran import Ran
from tandem_workers.dataset.shards import PixelShard, PrefixShard
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import DTYPES, ModelSet, device_name, load_tokenizer, load_transformer, pick_device
from tandem_workers.stages.device_queue import LaunchedDecode, queue_of, tokens_of
from tandem_workers.stages.oom import Halving
from tandem_workers.stages.shard_batches import Batch, RowsOfShard, fixed_batches


@dataclass(frozen=True)
class LaunchedPixels:
    """Pixels of some rows in host memory, uint8 [b, H, W, 3], and whether all were finite."""

    host_bHW3: torch.Tensor
    finite: torch.Tensor

    @property
    def checked(self) -> np.ndarray:
        """The pixels, valid once the mark is reached. JobError for pixels that are not finite."""
        if not self.finite:
            raise JobError("the decoder made pixels that are not finite")
        return self.host_bHW3.numpy()


@dataclass(frozen=True)
class RefinedBatch:
    """A batch whose ids and pixels have been launched, and the marks of its work."""

    batch: Batch
    decodes: list[LaunchedDecode]
    pixels: list[LaunchedPixels]
    began: Any
    refined: Any
    done: Any


class Refiner:
    """Holds the refiner and the VQVAE on one device. `__call__` takes prefixes and returns pixels."""

    name = "refine"

    def __init__(self, models: ModelSet, settings: DecodeSettings, keep_tokens: bool = False):
        self.models, self.settings, self.keep_tokens = models, settings, keep_tokens

    def load(self) -> Refiner:
        models, settings = self.models, self.settings
        torch.set_num_threads(settings.threads)
        self.device, dtype = pick_device(settings.on_gpu), DTYPES[settings.dtype]
        self.refiner = load_transformer(models.ref("refiner"), dtype, self.device, settings.preparation)
        self.vqvae = load_tokenizer(
            models.vqvae, models.drafter_config.patch_nums, dtype, self.device, settings.preparation
        )
        self.refining, self.decoding = Halving("refine", settings.batch), Halving("decode", settings.batch)
        self.queue = queue_of(self.device)
        return self

    def __call__(self, shard: PrefixShard) -> PixelShard:
        seconds = dict.fromkeys(("refine", "decode"), 0.0)
        pixels, tokens = RowsOfShard(len(shard)), RowsOfShard(len(shard))
        cuts = fixed_batches(shard, self.settings, self.refiner.config, self.device)
        for made in self.queue.run(partial(self.launch, shard.prefix), cuts):
            tokens.put(made.batch, tokens_of(made.decodes))
            pixels.put(made.batch, np.concatenate([part.checked for part in made.pixels]))
            seconds["refine"] += self.queue.seconds(made.began, made.refined)
            seconds["decode"] += self.queue.seconds(made.refined, made.done)
        return PixelShard.of(
            shard,
            pixels=pixels.array,
            tokens=tokens.array if self.keep_tokens else None,
            seconds={**shard.seconds, **seconds},
            ran={**shard.ran, **self.ran},
        )

    @property
    def ran(self) -> dict[str, Ran]:
        """How the two stages run at present."""
        var, vqvae, name = self.refiner, self.vqvae, device_name(self.device)
        dtype = vqvae.post_quant_conv.weight.dtype
        return {
            "refine": Ran.of(name, var.dtype, [var.fused, vqvae.quantize.fused], var.graphs, self.refining.size),
            "decode": Ran.of(name, dtype, [vqvae.fused, vqvae.quantize.fused], vqvae.graphs, self.decoding.size),
        }

    def launch(self, prefix_nP: np.ndarray, batch: Batch) -> RefinedBatch:
        """Launch refine and decode of a batch. `prefix_nP`: prefixes of the whole shard."""
        began = self.queue.mark()
        prefix_BP = prefix_nP[batch.rows_B, : self.refiner.config.pyramid.offsets[batch.draft_steps]]
        decodes = []
        for attempt in self.refining.attempts(self.settings.batch):
            with attempt as rows:
                decodes.append(self.refine(batch, prefix_BP, rows))
        refined = self.queue.mark()
        ids_BL = torch.cat([part.ids_bL for part in decodes])
        pixels = []
        for attempt in self.decoding.attempts(self.settings.batch):
            with attempt as rows:
                pixels.append(self.decode(batch, ids_BL, rows))
        return RefinedBatch(batch, decodes, pixels, began, refined, self.queue.mark())

    def refine(self, batch: Batch, prefix_BP: np.ndarray, rows: slice) -> LaunchedDecode:
        """Launch the refinement of some rows of a batch."""
        prefix = Prefix(prefix_BP[rows], batch.draft_steps)
        labels_B, uniforms_BL, sampling = batch.labels_B[rows], batch.uniforms_BL[rows], batch.sampling[rows]
        quantizer, source = self.vqvae.quantize, batch.source and batch.source[rows]
        found = begin_refine(self.refiner, quantizer, labels_B, uniforms_BL, prefix, sampling, False, source)
        return LaunchedDecode.of(found, self.queue)

    def decode(self, batch: Batch, ids_BL: torch.Tensor, rows: slice) -> LaunchedPixels:
        """Launch the pixels of some rows of a batch."""
        pixels_b3HW = decode(self.vqvae, ids_BL[rows], batch.source and batch.source[rows])
        finite = torch.isfinite(pixels_b3HW).all()
        return LaunchedPixels(self.queue.to_host(rounded(pixels_b3HW)), self.queue.to_host(finite))


def to_uint8(pixels_B3HW: torch.Tensor) -> np.ndarray:
    """Pixels float [B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3] in host memory."""
    return rounded(pixels_B3HW).cpu().numpy()
