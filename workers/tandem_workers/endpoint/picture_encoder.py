"""Pictures of edits to token ids, for the endpoint."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from tandem.vqvae import Vqvae, to_float
from tandem_workers.models.model_set import ModelSet, load_tokenizer
from tandem_workers.requests.messages import Edit

KEPT = 64  # pictures whose ids are remembered: people try one picture several times


class PictureEncoder:
    """Encodes in float32, as jobs do, whatever the models decode in.

    Args:
        vqvae: the one that decodes; it encodes too if it is in float32. Else another is loaded for the first picture.
    """

    def __init__(self, models: ModelSet, vqvae: Vqvae, device: torch.device):
        self.models, self.decoding, self.device = models, vqvae, device
        self.known: OrderedDict[tuple[str, int], NDArray[np.uint16]] = OrderedDict()

    @cached_property
    def vqvae(self) -> Vqvae:
        if self.decoding.post_quant_conv.weight.dtype == torch.float32:
            return self.decoding
        return load_tokenizer(self.models.vqvae, self.models.drafter_config.patch_nums, torch.float32, self.device)

    @torch.inference_mode()
    def encode(self, edit: Edit, batch: int) -> NDArray[np.uint16]:
        """Token ids of the model's square at all scales, uint16 [L], from a batch that holds it as often as that."""
        key = hashlib.sha256(edit.square.tobytes()).hexdigest(), batch
        if key not in self.known:
            pixels_3SS = torch.from_numpy(edit.square.copy()).permute(2, 0, 1)
            pixels_B3SS = to_float(pixels_3SS).to(self.device).expand(batch, -1, -1, -1)
            self.known[key] = self.vqvae.encode(pixels_B3SS)[0].cpu().numpy().astype(np.uint16)
        self.known.move_to_end(key)
        if len(self.known) > KEPT:
            self.known.popitem(last=False)
        return self.known[key]
