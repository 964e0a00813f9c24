"""Weights that a training run begins with, or learns from: one copy a node, whatever files its nodes see."""

from __future__ import annotations

from dataclasses import dataclass

import ray
import torch

from tandem.quantizer import Quantizer
from tandem.training.carried import Weights
from tandem.var import Var
from tandem.vqvae import Vqvae


@dataclass(frozen=True)
class SharedWeights:
    """Makes models of weights in the object store of Ray. Can be pickled, as small as a reference."""

    ref: ray.ObjectRef

    @classmethod
    def put(cls, weights: Weights) -> SharedWeights:
        return cls(ray.put(weights))

    def var(self, device: torch.device) -> Var:
        return ray.get(self.ref).var(device)

    def half_var(self, device: torch.device) -> Var:
        """In bfloat16, for a teacher."""
        return ray.get(self.ref).var(device, torch.bfloat16)

    def vqvae(self, device: torch.device) -> Vqvae:
        return ray.get(self.ref).vqvae(device)

    def quantizer(self, device: torch.device) -> Quantizer:
        return self.vqvae(device).quantize
