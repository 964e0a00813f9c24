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


def guidance(cfg_B: Tensor, scale: int, num_scales: int) -> Tensor:
    """Strength t of classifier-free guidance at a scale (0-based), growing linearly: cond + t (cond - uncond)."""
    return cfg_B * (scale / (num_scales - 1))


def candidates(logits_BlV: Tensor, sampling: SamplingConfig, temperature: float) -> tuple[Tensor, Tensor | None]:
    """Distribution that a token is drawn from, over the codes that top-k can leave, in the order of their ids:
    (probabilities float [B, l, W], ids int64 [B, l, W], or None for all codes). Top-k, top-p, then temperature.

    What is kept is decided by a threshold on the logits. Top-p needs them sorted: only the k largest are, where
    there is a top-k. Of equal logits at the threshold of top-k, k are kept in all.
    """
    logits_BlV, order_BlV, vocab = logits_BlV.float(), None, logits_BlV.shape[-1]
    if 0 < sampling.top_k < vocab:
        logits_BlV, order_BlV = logits_BlV.topk(sampling.top_k, dim=-1)
    if 0 < sampling.top_p < 1:
        falling_BlV = logits_BlV if order_BlV is not None else logits_BlV.sort(dim=-1, descending=True).values
        # summed in integers, so that the set kept is the same in every run and on every device
        weight_BlV = fixed_point(falling_BlV.softmax(dim=-1))
        total_Bl1 = weight_BlV.sum(dim=-1, keepdim=True)
        larger_BlV = weight_BlV.cumsum(dim=-1) - weight_BlV
        kept_Bl1 = (total_Bl1 - larger_BlV > (1 - sampling.top_p) * total_Bl1).sum(dim=-1, keepdim=True)
        least_Bl1 = falling_BlV.gather(-1, kept_Bl1.clamp_(min=1) - 1)
        logits_BlV = logits_BlV.masked_fill(logits_BlV < least_Bl1, -torch.inf)
    probability_BlV = (logits_BlV / temperature).softmax(dim=-1)
    if order_BlV is None:
        return probability_BlV, None
    ids_BlV, place_BlV = order_BlV.sort(dim=-1)
    return probability_BlV.gather(-1, place_BlV), ids_BlV


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
    probability_BlV, ids_BlV = candidates(logits_BlV, sampling, sampling.temperature(scale))
    drawn_Bl = draw(probability_BlV, uniform_Bl)
    return drawn_Bl if ids_BlV is None else ids_BlV.gather(-1, drawn_Bl[..., None]).squeeze(-1)
