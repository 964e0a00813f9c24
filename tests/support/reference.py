"""The small models of the reference arrays, rebuilt from their recipe.

`data/code_reference.npz` was computed by the published VAR and CoDe code in fp32 on a CPU, with weights that
anyone can make again: every tensor is drawn by a generator seeded with the CRC of its name.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tandem.config import SamplingConfig, VarConfig, VqvaeConfig
from tandem.sampling import candidates
from tandem.var import Var
from tandem.vqvae import Vqvae

DATA = Path(__file__).parents[1] / "data"
SEED = 0
VQVAE = VqvaeConfig(vocab_size=256, latent_channels=32, base_channels=32)
DRAFTER = VarConfig(depth=3, num_classes=10, vocab_size=256)
REFINER = VarConfig(depth=2, num_classes=10, vocab_size=256)
GREEDY = SamplingConfig(cfg=1.5, top_k=1, top_p=0.0, temperatures=(1.0,))


def fill(model: nn.Module, tag: str) -> nn.Module:
    """Weights of the recipe."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{tag}/{name}".encode()) + SEED)
            x = torch.randn(p.shape, generator=generator)
            table = name.endswith(("pos_start", "pos_1LC", "scale_mul_1H11"))
            if p.dim() >= 2 and not table and "embed" not in name and "class_emb" not in name:
                x = x / p[0].numel() ** 0.5
            elif name.endswith("scale_mul_1H11"):
                x = 1 + 0.1 * x
            elif "embedding" in name:
                pass
            elif p.dim() == 1 and name.endswith("weight"):
                x = 1 + 0.1 * x
            else:
                x = 0.1 * x
            p.copy_(x)
    return model.eval()


@lru_cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(DATA / "code_reference.npz") as file:
        return dict(file)


@lru_cache
def vqvae() -> Vqvae:
    return fill(Vqvae(VQVAE), "vae")


@lru_cache
def drafter() -> Var:
    return fill(Var(DRAFTER), "drafter")


@lru_cache
def refiner() -> Var:
    return fill(Var(REFINER), "refiner")


def input_pixels() -> torch.Tensor:
    """The image that the VQVAE arrays were made from: float [2, 3, 256, 256] in [-1, 1]."""
    generator = torch.Generator().manual_seed(SEED + 7)
    return torch.rand(len(arrays()["labels"]), 3, 256, 256, generator=generator) * 2 - 1


def probabilities(logits_BlV: torch.Tensor, sampling: SamplingConfig, temperature: float) -> torch.Tensor:
    """The distribution of `candidates` over all codes: float [B, l, V]."""
    found_BlW, ids_BlW = candidates(logits_BlV, sampling, temperature)
    return found_BlW if ids_BlW is None else torch.zeros_like(logits_BlV).scatter(-1, ids_BlW, found_BlW)
