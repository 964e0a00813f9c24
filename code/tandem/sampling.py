"""From logits to token ids: CFG, top-k, top-p, temperature, and draws that depend only on the image.

Shapes: B batch, l tokens of one scale, L tokens of all scales, V codes.
Source: VAR (arXiv 2404.02905) and the published CoDe code, which divides by temperature after both masks.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from copy import copy
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tandem.checks import UNIFORM_BITS, check_stream
from tandem.config import SamplingConfig
from tandem.transfers import upload

WEIGHT_BITS = 30
HEAD_SHARE = 8  # on a CPU top-p first sorts 1/8 of the codes, as a full sort is slow
CORE_TOKENS = 128  # sampled together by one thread, so that what is made of their logits stays in its core's cache


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
        falling_BlV = logits_BlV if order_BlV is not None else sorted_falling(logits_BlV)
        least_Bl1, _ = nucleus(falling_BlV, falling_BlV.softmax(dim=-1), sampling.top_p)
        logits_BlV = without_those_below(least_Bl1, logits_BlV)
    probability_BlV = (logits_BlV / temperature).softmax(dim=-1)
    return (probability_BlV, None) if order_BlV is None else by_id(probability_BlV, order_BlV)


def nucleus(falling_BlV: Tensor, probability_BlV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """(least logit that top-p keeps, whether it can keep no code beyond those given), both [B, l, 1].

    Takes the largest logits in descending order, and their probabilities among all codes.
    """
    # summed in integers, so that the set kept is the same in every run and on every device
    sum_BlV, enough = fixed_point(probability_BlV).cumsum(dim=-1), weight_of(top_p)
    last_Bl1 = torch.searchsorted(sum_BlV, sum_BlV.new_full((*sum_BlV.shape[:-1], 1), enough))
    least_Bl1 = falling_BlV.gather(-1, last_Bl1.clamp_(max=sum_BlV.shape[-1] - 1))
    return least_Bl1, (sum_BlV[..., -1:] >= enough) & (falling_BlV[..., -1:] < least_Bl1)


def is_on_cpu(values: Tensor) -> bool:
    """Whether numpy can compute with it."""
    return values.device.type == "cpu"


@lru_cache
def weight_of(top_p: float) -> int:
    """The least whole number of 2^-30 that is top-p or more as float32, in which such numbers were always compared."""
    enough = np.float32(top_p * 2**WEIGHT_BITS)
    weight = math.ceil(enough)
    while weight > 1 and np.float32(weight - 1) >= enough:
        weight -= 1
    return weight


def sorted_falling(logits_BlV: Tensor) -> Tensor:
    """Logits in descending order. On a CPU numpy sorts rows 20 times as fast as torch, by vector instructions."""
    if not is_on_cpu(logits_BlV):
        return logits_BlV.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(logits_BlV.numpy(), axis=-1)).flip(-1)


def largest(logits_nV: Tensor, few: int) -> tuple[Tensor, Tensor]:
    """The `few` largest logits of a token in descending order, and their ids int64, on a CPU. Of equal logits any come.

    As `topk`, by vector instructions: numbers with a logit's rank in their upper and the id in their lower half.
    """
    bits_nV = logits_nV.numpy().view(np.int32)
    rank_nV = bits_nV ^ ((bits_nV >> 31) & np.int32(2**31 - 1))  # as whole numbers in the order of the floats
    keys_nV = np.left_shift(rank_nV, 32, dtype=np.int64)
    keys_nV |= np.arange(keys_nV.shape[-1])
    keys_nV.partition(keys_nV.shape[-1] - few, axis=-1)
    ids_nW = torch.from_numpy(np.sort(keys_nV[:, -few:], axis=-1) & (2**32 - 1)).flip(-1)
    return logits_nV.gather(-1, ids_nW), ids_nW


def without_those_below(least_Bl1: Tensor, logits_BlV: Tensor) -> Tensor:
    """Logits, -inf where they are below the least. On a CPU by log 1 and log 0: a mask takes 7 times as long there."""
    if not is_on_cpu(logits_BlV):
        return logits_BlV.masked_fill(logits_BlV < least_Bl1, -torch.inf)
    return logits_BlV.clone().ge_(least_Bl1).log_().add_(logits_BlV)


def by_id(probability_BlV: Tensor, ids_BlV: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and ids, sorted by id."""
    if not is_on_cpu(ids_BlV):
        ids_BlV, place_BlV = ids_BlV.sort(dim=-1)
    else:
        keys_BlV = torch.from_numpy(np.sort((ids_BlV << 32).numpy() | np.arange(ids_BlV.shape[-1]), axis=-1))
        ids_BlV, place_BlV = keys_BlV >> 32, keys_BlV & (2**32 - 1)
    return probability_BlV.gather(-1, place_BlV), ids_BlV


def fixed_point(probability_BlV: Tensor) -> Tensor:
    """Probabilities as whole numbers of 2^-30: int64 [B, l, V]. Integer sums have no rounding and no order."""
    return (probability_BlV * 2**WEIGHT_BITS).round_().long()  # a power of two: the product is exact in any dtype


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
    if is_on_cpu(logits_BlV) and sampling.top_k == 0 and 0 < sampling.top_p < 1 and few > 0:
        most = CORE_TOKENS if torch.get_num_threads() == 1 else max(1, uniform_Bl.numel())
        tokens = zip(logits_BlV.float().flatten(0, 1).split(most), uniform_Bl.flatten().split(most), strict=True)
        drawn = [sample_head_first(*some, sampling, temperature, few) for some in tokens]
        return torch.cat(drawn).view(uniform_Bl.shape)
    return draw_code(*candidates(logits_BlV, sampling, temperature), uniform_Bl)


def sample_head_first(
    logits_nV: Tensor, uniform_n: Tensor, sampling: SamplingConfig, temperature: float, few: int
) -> Tensor:
    """Ids int64 [n] of tokens under top-p without top-k, on a CPU without a full sort: the kept codes are nearly always
    among the `few` largest. Other tokens are sampled in full. A token's path depends only on its own logits."""
    head_nW, order_nW = largest(logits_nV, few)
    probability_nW = logits_nV.softmax(dim=-1).gather(-1, order_nW)
    least_n1, found_n1 = nucleus(head_nW, probability_nW, sampling.top_p)
    head_nW = without_those_below(least_n1, head_nW)
    ids_n = draw_code(*by_id((head_nW / temperature).softmax(dim=-1), order_nW), uniform_n)
    rest_n = ~found_n1.squeeze(-1)
    if rest_n.any():
        ids_n[rest_n] = draw_code(*candidates(logits_nV[rest_n], sampling, temperature), uniform_n[rest_n])
    return ids_n


def draw_code(probability_BlV: Tensor, ids_BlV: Tensor | None, uniform_Bl: Tensor) -> Tensor:
    """Ids int64 [B, l] drawn from the distribution of `candidates`."""
    drawn_Bl = draw(probability_BlV, uniform_Bl)
    return drawn_Bl if ids_BlV is None else ids_BlV.gather(-1, drawn_Bl[..., None]).squeeze(-1)
