"""The draft stage: labels in, prefixes of token ids out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tandem.collaborative import begin_draft
from tandem_workers.dataset.ran import Ran
from tandem_workers.dataset.row_settings import draft_steps_of
from tandem_workers.dataset.shards import PrefixShard, ShardRows
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import DTYPES, ModelSet, device_name, load_tokenizer, load_transformer, pick_device
from tandem_workers.stages.device_queue import LaunchedDecode, queue_of, tokens_of
from tandem_workers.stages.oom import Halving
from tandem_workers.stages.shard_batches import Batch, fixed_batches


@dataclass(frozen=True)
class DraftedBatch:
    """A batch whose drafting has been launched."""

    batch: Batch
    decodes: list[LaunchedDecode]
    done: Any


class Drafter:
    """Holds the drafter's weights on one device. `__call__` takes a shard of labels and returns its prefixes."""

    name = "draft"

    def __init__(self, models: ModelSet, settings: DecodeSettings):
        self.models, self.settings = models, settings

    def load(self) -> Drafter:
        models, settings = self.models, self.settings
        torch.set_num_threads(settings.threads)
        self.device, dtype = pick_device(settings.on_gpu), DTYPES[settings.dtype]
        self.drafter = load_transformer(models.drafter, dtype, self.device, settings.preparation)
        patch_nums = models.drafter_config.patch_nums
        self.quantizer = load_tokenizer(models.vqvae, patch_nums, dtype, self.device, settings.preparation).quantize
        self.halving, self.queue = Halving(self.name, settings.batch), queue_of(self.device)
        return self

    def __call__(self, shard: ShardRows) -> PrefixShard:
        began = time.perf_counter()
        pyramid = self.drafter.config.pyramid
        most = int(draft_steps_of(shard, self.settings).max(initial=1))
        prefix = np.zeros((len(shard), pyramid.offsets[most]), np.uint16)  # rows of a smaller N end in zeros
        batches = fixed_batches(shard, self.settings, self.drafter.config, self.device)
        for drafted in self.queue.run(self.launch, batches):
            batch, tokens = drafted.batch, tokens_of(drafted.decodes)
            prefix[batch.counted, : tokens.shape[1]] = tokens[: batch.num_rows]
        seconds = {**shard.seconds, self.name: time.perf_counter() - began}
        return PrefixShard.of(
            shard, prefix=prefix, draft_steps=most, seconds=seconds, ran={**shard.ran, self.name: self.ran}
        )

    @property
    def ran(self) -> Ran:
        """How the stage runs at present."""
        var, name = self.drafter, device_name(self.device)
        return Ran.of(name, var.dtype, [var.fused, self.quantizer.fused], var.graphs, self.halving.size)

    def launch(self, batch: Batch) -> DraftedBatch:
        decodes = []
        for attempt in self.halving.attempts(self.settings.batch):
            with attempt as rows:
                decodes.append(self.draft(batch, rows))
        return DraftedBatch(batch, decodes, self.queue.mark())

    def draft(self, batch: Batch, rows: slice) -> LaunchedDecode:
        """Launch the draft of some rows of a batch."""
        labels_B, uniforms_BL, sampling = batch.labels_B[rows], batch.uniforms_BL[rows], batch.sampling[rows]
        steps, source = batch.draft_steps, batch.source and batch.source[rows]
        found = begin_draft(self.drafter, self.quantizer, labels_B, uniforms_BL, steps, sampling, False, source)
        return LaunchedDecode.of(found, self.queue)
