"""Fused kernels that write rows in FP8 for the next product: outputs of attention, and GELU of the hidden layer.

Shapes: R rows, H heads, l tokens, c head size; N rows, X hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.fp8 import FP8, Fp8Rows
from tandem.kernels import power_of_two
from tandem.triton_kernels import quantised_rows

WARPS, WIDE_WARPS = 4, 16  # for rows as wide as the model, and as its hidden layer


def empty_rows(rows: int, width: int, device: torch.device) -> Fp8Rows:
    values = torch.empty(rows, width, dtype=FP8, device=device)
    return Fp8Rows(values, torch.empty(rows, 1, dtype=torch.float32, device=device))


def merged_heads(out_RHlc: Tensor) -> Fp8Rows:
    """All heads of a token side by side: [R x l, H x c]. Only the last dimension has to be contiguous."""
    R, H, L, c = out_RHlc.shape
    assert out_RHlc.stride(3) == 1
    rows = empty_rows(R * L, H * c, out_RHlc.device)
    quantised_rows[(R * L,)](
        out_RHlc, rows.values, rows.scale, H * c, L, out_RHlc.stride(0), out_RHlc.stride(2), out_RHlc.stride(1),
        GELU=False, SIZE=c, BLOCK=power_of_two(H * c), num_warps=WARPS,
    )  # fmt: skip
    return rows


def merged_heads_plain(out_RHlc: Tensor) -> Tensor:
    """`merged_heads` in plain torch, before rounding: float32."""
    return out_RHlc.float().transpose(1, 2).flatten(2).flatten(0, 1)


def activated(hidden_NX: Tensor) -> Fp8Rows:
    """GELU (tanh approximation) of contiguous rows."""
    N, X = hidden_NX.shape
    assert hidden_NX.is_contiguous()
    rows, block = empty_rows(N, X, hidden_NX.device), power_of_two(X)
    quantised_rows[(N,)](
        hidden_NX, rows.values, rows.scale, X, 1, X, 0, 0, GELU=True, SIZE=block, BLOCK=block, num_warps=WIDE_WARPS
    )  # fmt: skip
    return rows


def activated_plain(hidden_NX: Tensor) -> Tensor:
    """`activated` in plain torch, before rounding: float32."""
    return F.gelu(hidden_NX.float(), approximate="tanh")
