"""From logits to token ids: CFG, top-k, top-p, temperature, and draws that depend only on the image.

Shapes: B batch, l tokens of one scale, L tokens of all scales, V codes.
Source: VAR (arXiv 2404.02905) and the published CoDe code, which divides by temperature after both masks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from tandem.checks import UNIFORM_BITS, check_stream
from tandem.config import SamplingConfig
from tandem.transfers import upload

WEIGHT_BITS = 30
HEAD_SHARE = 8  # on a CPU top-p first sorts 1/8 of the codes, as a full sort is slow


def uniforms(seed: int | np.ndarray, index_B: np.ndarray, num_tokens: int) -> Tensor:
    """One random integer in [0, 2^31) for each token of each image: int64 [B, L].

    The stream of an image is Philox (counter-based) keyed by (seed, index), so it does not depend on the batch,
    the replica or the order in which images are made. Position in the stream = absolute token position.

    Args:
        seed: of the job, 0 to 2^64 - 1; or of each image, whole numbers [B].
        index_B: position of each image in the job, whole numbers [B].
        num_tokens: L, tokens of all scales of an image (`Pyramid.num_tokens`).

    Raises InputError.
    """
    index_B = check_stream(seed, index_B, num_tokens)
    streams = [
        np.random.Philox(key=np.array([own, index], dtype=np.uint64)).random_raw(num_tokens)
        for own, index in zip(np.broadcast_to(seed, len(index_B)), index_B, strict=True)
    ]
    bits = np.stack(streams) >> np.uint64(64 - UNIFORM_BITS)
    return torch.from_numpy(bits.astype(np.int64))


class RowGroups:
    """Groups of images in a batch with the same sampling settings. Their row numbers are copied to the device once per
    decode, because a copy at every scale would block the host.

    Attributes:
        groups: each setting with the rows that have it.
        tensors: these rows on the device, int64 [b] each; empty if all rows have the same settings.
    """

    def __init__(self, sampling: Sequence[SamplingConfig], device: torch.device):
        self.groups: dict[SamplingConfig, list[int]] = {}
        for row, config in enumerate(sampling):
            self.groups.setdefault(config, []).append(row)
        several = self.groups.values() if len(self.groups) > 1 else ()
        self.tensors = tuple(upload(torch.tensor(mine), device) for mine in several)

    def at(self, tensors: Sequence[Tensor]) -> RowGroups:
        """The same groups, their rows in these tensors."""
        groups = copy(self)
        groups.tensors = tuple(tensors)
        return groups

    @property
    def key(self) -> Hashable:
        """Cache key: equal for batches with the same settings in the same rows."""
        return tuple((config, tuple(mine) if self.tensors else None) for config, mine in self.groups.items())

    def among(self, start: int, stop: int) -> Iterator[tuple[SamplingConfig, Tensor | slice]]:
        """For rows start..stop: each setting with the rows int64 [b] that have it, counted from `start`."""
        if not self.tensors:
            yield next(iter(self.groups)), slice(None)
            return
        for (config, mine), mine_b in zip(self.groups.items(), self.tensors, strict=True):
            first, end = bisect_left(mine, start), bisect_left(mine, stop)
            if first < end:
                yield config, mine_b[first:end] - start


def guidance(cfg_B: Tensor, scale: int, num_scales: int) -> Tensor:
    """Strength t of classifier-free guidance at a scale (0-based), growing linearly: cond + t (cond - uncond)."""
    return cfg_B * (scale / (num_scales - 1))


def candidates(logits_BlV: Tensor, sampling: SamplingConfig, temperature: float) -> tuple[Tensor, Tensor | None]:
    """Distribution that a token is drawn from, over the codes that top-k leaves, in the order of their ids:
    (probabilities float [B, l, W], ids int64 [B, l, W], or None for all codes). Top-k, top-p, then temperature.

    Top-p keeps logits above a threshold, which needs them sorted; after top-k only the k largest are. Top-k keeps
    exactly k codes, even if logits at its threshold are equal.
    """
    logits_BlV, order_BlV, vocab = logits_BlV.float(), None, logits_BlV.shape[-1]
    if 0 < sampling.top_k < vocab:
        logits_BlV, order_BlV = logits_BlV.topk(sampling.top_k, dim=-1)
    if 0 < sampling.top_p < 1:
        falling_BlV = logits_BlV if order_BlV is not None else logits_BlV.sort(dim=-1, descending=True).values
        least_Bl1, _ = nucleus(falling_BlV, falling_BlV.softmax(dim=-1), sampling.top_p)
        logits_BlV = logits_BlV.masked_fill(logits_BlV < least_Bl1, -torch.inf)
    probability_BlV = (logits_BlV / temperature).softmax(dim=-1)
    return (probability_BlV, None) if order_BlV is None else by_id(probability_BlV, order_BlV)


def nucleus(falling_BlV: Tensor, probability_BlV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """(least logit that top-p keeps, whether it can keep no code beyond those given), both [B, l, 1].

    Takes the largest logits in descending order, and their probabilities among all codes.
    """
    # summed in integers, so that the set kept is the same in every run and on every device
    weight_BlV = fixed_point(probability_BlV)
    sum_BlV = weight_BlV.cumsum(dim=-1)
    enough = top_p * 2**WEIGHT_BITS
    kept_Bl1 = (sum_BlV - weight_BlV < enough).sum(dim=-1, keepdim=True)
    least_Bl1 = falling_BlV.gather(-1, kept_Bl1.clamp_(min=1) - 1)
    return least_Bl1, (sum_BlV[..., -1:] >= enough) & (falling_BlV[..., -1:] < least_Bl1)


def by_id(probability_BlV: Tensor, ids_BlV: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and ids, sorted by id."""
    ids_BlV, place_BlV = ids_BlV.sort(dim=-1)
    return probability_BlV.gather(-1, place_BlV), ids_BlV


def fixed_point(probability_BlV: Tensor) -> Tensor:
    """Probabilities as whole numbers of 2^-30: int64 [B, l, V]. Integer sums have no rounding and no order."""
    return (probability_BlV.double() * 2**WEIGHT_BITS).round().long()


def draw(probability_BlV: Tensor, uniform_Bl: Tensor) -> Tensor:
    """Inverse-CDF draw with the given integers in [0, 2^31): int64 [B, l].

    A code of weight zero is never drawn; the result is exact for the rounded weights. For NaN
    probabilities some code is drawn, and the caller reports them later.
    """
    cdf_BlV = fixed_point(probability_BlV).cumsum(dim=-1)
    target_Bl1 = (uniform_Bl[..., None] * cdf_BlV[..., -1:]) >> UNIFORM_BITS
    drawn_Bl = torch.searchsorted(cdf_BlV, target_Bl1, right=True).squeeze(-1)
    return drawn_Bl.clamp_(max=cdf_BlV.shape[-1] - 1)


def sample(logits_BlV: Tensor, uniform_Bl: Tensor, sampling: SamplingConfig, scale: int) -> Tensor:
    """Token ids int64 [B, l] of one scale (0-based). With top_k = 1 the largest logit wins, the first if several."""
    if sampling.top_k == 1:
        return logits_BlV.argmax(dim=-1)
    temperature, few = sampling.temperature(scale), logits_BlV.shape[-1] // HEAD_SHARE
    if logits_BlV.device.type == "cpu" and sampling.top_k == 0 and 0 < sampling.top_p < 1 and few > 0:
        return sample_head_first(logits_BlV.float(), uniform_Bl, sampling, temperature, few)
    return draw_code(*candidates(logits_BlV, sampling, temperature), uniform_Bl)


def sample_head_first(
    logits_BlV: Tensor, uniform_Bl: Tensor, sampling: SamplingConfig, temperature: float, few: int
) -> Tensor:
    """Ids int64 [B, l] under top-p without top-k, without a full sort: the kept codes are nearly always among the
    `few` largest. Other tokens are sampled in full. A token's path depends only on its own logits."""
    head_BlW, order_BlW = logits_BlV.topk(few, dim=-1)
    probability_BlW = logits_BlV.softmax(dim=-1).gather(-1, order_BlW)
    least_Bl1, found_Bl1 = nucleus(head_BlW, probability_BlW, sampling.top_p)
    head_BlW = head_BlW.masked_fill(head_BlW < least_Bl1, -torch.inf)
    ids_Bl = draw_code(*by_id((head_BlW / temperature).softmax(dim=-1), order_BlW), uniform_Bl)
    rest_Bl = ~found_Bl1.squeeze(-1)
    ids_Bl[rest_Bl] = draw_code(*candidates(logits_BlV[rest_Bl], sampling, temperature), uniform_Bl[rest_Bl])
    return ids_Bl


def draw_code(probability_BlV: Tensor, ids_BlV: Tensor | None, uniform_Bl: Tensor) -> Tensor:
    """Ids int64 [B, l] drawn from the distribution of `candidates`."""
    drawn_Bl = draw(probability_BlV, uniform_Bl)
    return drawn_Bl if ids_BlV is None else ids_BlV.gather(-1, drawn_Bl[..., None]).squeeze(-1)
