"""Attention over a KV cache that is allocated once.

Shapes: R rows (with CFG: conditional then unconditional), L tokens, l new tokens, H heads, c head size.
Source: VAR (arXiv 2404.02905): q and k are l2-normalised, the softmax scale is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.config import VarConfig
from tandem.kernels import to_compute
from tandem.limits import limits, rows_together


class KVCache:
    """Keys and values of all layers, allocated once: the first `length` tokens, which later scales read again.

    The last scale is not cached, as none follows. It attends to the cache and to itself in a scratch buffer of `widest`
    tokens for the rows of one group, which all layers share. Both buffers hold K and V in the compute dtype.

    Where unconditional rows have served before the end (`last_rows` below `rows`), the cache narrows at `narrows_at`
    tokens: the rows left take the memory of all, so that it has the larger of both sizes.
    """

    def __init__(
        self,
        config: VarConfig,
        rows: int,
        length: int,
        widest: int,
        dtype: torch.dtype,
        device: torch.device,
        last_rows: int | None = None,
        narrows_at: int = 0,
    ):
        last_rows = rows if last_rows is None else last_rows
        heads, size = config.heads, config.head_dim
        shapes = [(2, rows, heads, narrows_at, size), (2, last_rows, heads, length, size)]
        sizes = [math.prod(shape) for shape in shapes]
        self.memory = torch.empty(config.depth, max(sizes), dtype=dtype, device=device)
        self.wide, self.narrow = (
            self.memory[:, :n].view(config.depth, *shape) for n, shape in zip(sizes, shapes, strict=True)
        )
        last = widest - length
        scratch_rows = rows_together(config, last_rows, last, dtype, device) if 0 < length < widest else 0
        self.scratch = torch.empty(2, scratch_rows, heads, widest, size, dtype=dtype, device=device)
        self.narrows_at, self.filled = narrows_at, 0

    @property
    def store(self) -> Tensor:
        """K and V of the rows in use, [layers, 2, R, H, L, c]."""
        return self.wide if self.filled < self.narrows_at else self.narrow

    @property
    def num_bytes(self) -> int:
        """Bytes of cache and scratch."""
        return sum(t.numel() * t.element_size() for t in (self.memory, self.scratch))

    def extend(self, layer: int, rows: slice, k_RHlc: Tensor, v_RHlc: Tensor) -> tuple[Tensor, Tensor]:
        """Append new tokens; returns keys and values [R, H, L, c] of these rows, of all tokens so far."""
        start, stop = self.filled, self.filled + k_RHlc.shape[2]
        if start == 0 and stop > self.store.shape[4]:
            return k_RHlc, v_RHlc
        place = self.room(layer, rows, stop)
        place[0, :, :, start:stop] = k_RHlc
        place[1, :, :, start:stop] = v_RHlc
        return place[0, :, :, :stop], place[1, :, :, :stop]

    def room(self, layer: int, rows: slice, stop: int) -> Tensor:
        """Buffer [2, R, H, ., c] for keys and values of these rows: room for `stop` tokens, earlier ones in place."""
        kept = self.store[layer, :, rows]
        if stop <= kept.shape[3]:
            return kept
        if self.filled == 0:
            heads, size = kept.shape[2], kept.shape[4]
            return torch.empty(2, kept.shape[1], heads, stop, size, dtype=kept.dtype, device=kept.device)
        place = self.scratch[:, : kept.shape[1]]
        place[:, :, :, : self.filled] = kept[:, :, :, : self.filled]
        return place

    def advance(self, num_tokens: int) -> None:
        """Count the new tokens. Call it after all layers have added them."""
        was_wide = self.filled < self.narrows_at
        self.filled += num_tokens
        if was_wide and self.filled >= self.narrows_at:
            for wide, narrow in zip(self.wide, self.narrow, strict=True):
                narrow[:, :, :, : self.filled] = wide[:, : narrow.shape[1]].clone()  # both are in the same memory


def attend_by_scale(q_RHlc: Tensor, k_RHLc: Tensor, v_RHLc: Tensor, sizes: Sequence[int]) -> Tensor:
    """Block-causal attention [R, H, l, c] without a mask. The new tokens are the last of all L, in whole scales of
    `sizes` tokens; each scale sees itself and all tokens before it."""
    if len(sizes) == 1:
        return attention(q_RHlc, k_RHLc, v_RHLc)
    seen, parts = k_RHLc.shape[2] - sum(sizes), []
    for size, q_part in zip(sizes, q_RHlc.split(list(sizes), dim=2), strict=True):
        seen += size
        parts.append(attention(q_part, k_RHLc[:, :, :seen], v_RHLc[:, :, :seen]))
    return torch.cat(parts, dim=2)


def attention(q_RHlc: Tensor, k_RHLc: Tensor, v_RHLc: Tensor) -> Tensor:
    """Full attention [R, H, l, c]. On a CPU for inference only, without torch's fused kernel, which is slower there."""
    at_once = limits(q_RHlc.device).scores
    if at_once is None:
        if q_RHlc.is_meta:  # has no fused kernel
            return torch.empty_like(q_RHlc)
        return F.scaled_dot_product_attention(q_RHlc, k_RHLc, v_RHLc, scale=1.0)
    q_Nlc, k_NLc, v_NLc = (t.flatten(0, 1) for t in (q_RHlc, k_RHLc, v_RHLc))
    out_Nlc = torch.empty_like(q_Nlc, memory_format=torch.contiguous_format)
    step = max(1, at_once // (q_Nlc.shape[1] * k_NLc.shape[1]))
    for i in range(0, len(q_Nlc), step):
        some = slice(i, i + step)
        weights_NlL = torch.bmm(to_compute(q_Nlc[some]), to_compute(k_NLc[some]).transpose(1, 2)).softmax(dim=-1)
        out_Nlc[some] = torch.bmm(weights_NlL, to_compute(v_NLc[some]))
    return out_Nlc.view(q_RHlc.shape)
