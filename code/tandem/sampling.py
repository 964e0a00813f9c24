"""From logits to token ids: CFG, top-k, top-p, temperature, and draws that depend on the image alone.

Shapes: B batch, l tokens of one scale, L tokens of all scales, V codes.
Source: VAR (arXiv 2404.02905) and the published CoDe code, which divides by temperature after both masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tandem.config import SamplingConfig

UNIFORM_BITS = 31
WEIGHT_BITS = 30


def uniforms(seed: int, index_B: np.ndarray, num_tokens: int) -> Tensor:
    """One random integer in [0, 2^31) for each token of each image: int64 [B, L].

    The stream of an image is Philox (counter-based) keyed by (seed, index), so it does not depend on the batch,
    the replica or the order in which images are made. Position in the stream = absolute token position.
    """
    streams = [
        np.random.Philox(key=np.array([seed, index], dtype=np.uint64)).random_raw(num_tokens) for index in index_B
    ]
    bits = np.stack(streams) >> np.uint64(64 - UNIFORM_BITS)
    return torch.from_numpy(bits.astype(np.int64))


def group_rows(
    sampling: SamplingConfig | Sequence[SamplingConfig], device: torch.device
) -> list[tuple[SamplingConfig, Tensor | slice]]:
    """The images of a batch that are sampled alike: each setting with the rows int64 [b] that have it."""
    if isinstance(sampling, SamplingConfig):
        return [(sampling, slice(None))]
    if len(set(sampling)) == 1:
        return [(sampling[0], slice(None))]
    rows: dict[SamplingConfig, list[int]] = {}
    for row, config in enumerate(sampling):
        rows.setdefault(config, []).append(row)
    return [(config, torch.tensor(mine, device=device)) for config, mine in rows.items()]


def guide(cond_BlV: Tensor, uncond_BlV: Tensor, cfg: float, scale: int, num_scales: int) -> Tensor:
    """Classifier-free guidance, growing linearly with the scale: (1 + t) cond - t uncond."""
    t = cfg * scale / (num_scales - 1)
    return (1 + t) * cond_BlV - t * uncond_BlV


def probabilities(logits_BlV: Tensor, sampling: SamplingConfig, temperature: float) -> Tensor:
    """Distribution that a token is drawn from: float [B, l, V]. Top-k, then top-p, then temperature."""
    logits_BlV = logits_BlV.float()
    vocab = logits_BlV.shape[-1]
    if 0 < sampling.top_k < vocab:
        kth_Bl1 = logits_BlV.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits_BlV = logits_BlV.masked_fill(logits_BlV < kth_Bl1, -torch.inf)
    if 0 < sampling.top_p < 1:
        ascending_BlV, order_BlV = logits_BlV.sort(dim=-1)
        # summed in integers, so that the set kept is the same in every run and on every device
        weight_BlV = fixed_point(ascending_BlV.softmax(dim=-1))
        tail_BlV = weight_BlV.cumsum(dim=-1)
        drop_BlV = tail_BlV <= (1 - sampling.top_p) * tail_BlV[..., -1:]
        drop_BlV[..., -1] = False
        logits_BlV = logits_BlV.masked_fill(torch.zeros_like(drop_BlV).scatter(-1, order_BlV, drop_BlV), -torch.inf)
    return (logits_BlV / temperature).softmax(dim=-1)


def fixed_point(probability_BlV: Tensor) -> Tensor:
    """Probabilities as whole numbers of 2^-30: int64 [B, l, V]. Integer sums have no rounding and no order."""
    return (probability_BlV.double() * 2**WEIGHT_BITS).round().long()


def draw(probability_BlV: Tensor, uniform_Bl: Tensor) -> Tensor:
    """Inverse-CDF draw with the given integers in [0, 2^31): int64 [B, l].

    A code of weight zero is never drawn; the result is exact for the rounded weights. Of probabilities that are
    NaN some code is drawn, so that the caller comes to report them.
    """
    cdf_BlV = fixed_point(probability_BlV).cumsum(dim=-1)
    target_Bl1 = (uniform_Bl[..., None] * cdf_BlV[..., -1:]) >> UNIFORM_BITS
    drawn_Bl = torch.searchsorted(cdf_BlV, target_Bl1, right=True).squeeze(-1)
    return drawn_Bl.clamp_(max=cdf_BlV.shape[-1] - 1)


def sample(logits_BlV: Tensor, uniform_Bl: Tensor, sampling: SamplingConfig, scale: int) -> Tensor:
    """Token ids int64 [B, l] of one scale (0-based). With top_k = 1 the largest logit wins, the first if several."""
    if sampling.top_k == 1:
        return logits_BlV.argmax(dim=-1)
    return draw(probabilities(logits_BlV, sampling, sampling.temperature(scale)), uniform_Bl)
