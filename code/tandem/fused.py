"""A transformer with fused kernels: all steps between two products are one kernel.

`FusedVar` computes what `Var.hidden` and `Var.logits` define, with fewer roundings: sums in float32, rounded once.
The head multiplies in the model's dtype and sums in float32.

Shapes: R rows (see `tandem.guidance`), B images, L tokens, l tokens of the last scale, C width,
H heads, c head size, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.attention import KVCache, attend_by_scale
from tandem.blocks import MAX_SCALE_MUL, MIN_NORM, Block, layer_norm
from tandem.conditioning import Conditioning
from tandem.fp8 import Fp8Rows
from tandem.fused_fp8 import activated, empty_rows, merged_heads
from tandem.guidance import ScaleGuidance
from tandem.kernels import power_of_two
from tandem.limits import effective_device
from tandem.triton_kernels import gated_norm, head_norm, split_heads
from tandem.var import Var

EPS = 1e-6
WARPS = 4


def norm_modulated(
    x_RLC: Tensor,
    branch_RLC: Tensor | None,
    gate_RC: Tensor | None,
    scale_RC: Tensor | None,
    shift_RC: Tensor | None,
    in_fp8: bool = False,
) -> tuple[Tensor, Tensor | Fp8Rows]:
    """(y = x + branch * gate, layer norm of y scaled and shifted), both [R, L, C]. Without branch and gate y is x;
    without scale and shift there is no norm. `in_fp8`: the norm as rows in FP8."""
    R, L, C = x_RLC.shape
    given = gate_RC if gate_RC is not None else scale_RC
    assert given is not None and x_RLC.stride()[1:] == (C, 1)
    new = x_RLC if branch_RLC is None else torch.empty(R, L, C, dtype=x_RLC.dtype, device=x_RLC.device)
    out = new if scale_RC is None or in_fp8 else torch.empty(R, L, C, dtype=x_RLC.dtype, device=x_RLC.device)
    rows = empty_rows(R * L, C, x_RLC.device) if scale_RC is not None and in_fp8 else None
    values, row_scale = rows or (out, None)
    gated_norm[(R * L,)](
        x_RLC, branch_RLC, gate_RC, scale_RC, shift_RC, new, values, row_scale, C, L, x_RLC.stride(0), given.stride(0),
        EPS, HAS_BRANCH=branch_RLC is not None, HAS_OUT=scale_RC is not None, QUANTISED=rows is not None,
        BLOCK=power_of_two(C), num_warps=WARPS,
    )  # fmt: skip
    return new, rows or out


def norm_modulated_plain(
    x_RLC: Tensor, branch_RLC: Tensor | None, gate_RC: Tensor | None, scale_RC: Tensor | None, shift_RC: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`norm_modulated` in plain torch."""
    if branch_RLC is not None and gate_RC is not None:
        x_RLC = torch.addcmul(x_RLC, branch_RLC, gate_RC.unsqueeze(1))
    if scale_RC is None or shift_RC is None:
        return x_RLC, x_RLC
    return x_RLC, torch.addcmul(shift_RC.unsqueeze(1), layer_norm(x_RLC), scale_RC.unsqueeze(1) + 1)


def place_heads(qkv_RLX: Tensor, head_scale_H: Tensor, wanted: int, kv_2RHLc: Tensor, start: int) -> Tensor:
    """q [R, H, l, c] of the last `wanted` = l tokens, with norm `head_scale_H`. k, with norm 1, and v are written into
    kv [2, R, H, ., c] from token `start` on. qkv [R, L, 3 C] is contiguous."""
    (R, L, _), (_, _, H, _, c) = qkv_RLX.shape, kv_2RHLc.shape
    assert kv_2RHLc.stride()[3:] == (c, 1) and c == power_of_two(c)
    q_RlHc = torch.empty(R, wanted, H, c, dtype=qkv_RLX.dtype, device=qkv_RLX.device)
    _, row, head, _, _ = kv_2RHLc.stride()
    split_heads[(R * L,)](
        qkv_RLX, head_scale_H, q_RlHc, kv_2RHLc[0], kv_2RHLc[1], L, L - wanted, H, row, head, start,
        HEADS=power_of_two(H), SIZE=c, num_warps=WARPS,
    )  # fmt: skip
    return q_RlHc.transpose(1, 2)


def place_heads_plain(qkv_RLX: Tensor, head_scale_H: Tensor, wanted: int, kv_2RHLc: Tensor, start: int) -> Tensor:
    """`place_heads` in plain torch."""
    (R, L, _), (_, _, H, _, c) = qkv_RLX.shape, kv_2RHLc.shape
    q_RLHc, k_RLHc, v_RLHc = qkv_RLX.view(R, L, 3, H, c).unbind(2)
    lengths = [t.float().norm(dim=-1, keepdim=True).clamp_min(MIN_NORM) for t in (q_RLHc, k_RLHc)]
    kv_2RHLc[0, :, :, start : start + L] = (k_RLHc / lengths[1]).to(kv_2RHLc.dtype).transpose(1, 2)
    kv_2RHLc[1, :, :, start : start + L] = v_RLHc.transpose(1, 2)
    q_RLHc = (q_RLHc / lengths[0] * head_scale_H[:, None]).to(qkv_RLX.dtype)
    return q_RLHc[:, L - wanted :].transpose(1, 2)


def head_inputs(x_RlC: Tensor, modulation_R2C: Tensor, guidance: ScaleGuidance | None, some: slice) -> Tensor:
    """Inputs of the head, [b, l, C] of the images `some`: layer norm, modulation, and guidance if there is any."""
    _, L, C = x_RlC.shape
    images = some.stop - some.start
    scale_RC, shift_RC = modulation_R2C.unbind(1)
    out = torch.empty(images, L, C, dtype=x_RlC.dtype, device=x_RlC.device)
    strength_B, partner_B = (guidance.strength_B[some], guidance.partner_B[some]) if guidance else (None, None)
    head_norm[(images * L,)](
        x_RlC, scale_RC, shift_RC, strength_B, partner_B, out, C, L, x_RlC.stride(0), scale_RC.stride(0), some.start,
        EPS, GUIDED=guidance is not None, BLOCK=power_of_two(C), num_warps=WARPS,
    )  # fmt: skip
    return out


def head_inputs_plain(x_RlC: Tensor, modulation_R2C: Tensor, guidance: ScaleGuidance | None, some: slice) -> Tensor:
    """`head_inputs` in plain torch."""
    scale, shift = modulation_R2C.float().unsqueeze(2).unbind(1)
    h_RlC = torch.addcmul(shift, layer_norm(x_RlC.float()), scale + 1)
    if guidance is None:
        return h_RlC[some].to(x_RlC.dtype)
    cond, uncond = h_RlC[guidance.pairs(some)].chunk(2)
    return (cond + guidance.strength_B[some].view(-1, 1, 1) * (cond - uncond)).to(x_RlC.dtype)


class FusedVar:
    """Blocks and head of one model, with the inputs of its kernels that do not change from scale to scale."""

    def __init__(self, var: Var):
        self.var = var
        self.qkv_bias = [
            torch.cat([b.attn.q_bias, torch.zeros_like(b.attn.q_bias), b.attn.v_bias]).detach() for b in var.layers
        ]
        self.head_scale = [
            b.attn.scale_mul_1H11.detach().float().clamp_max(MAX_SCALE_MUL).exp().flatten() for b in var.layers
        ]
        self.head_weight = var.head.weight.detach().to(var.dtype)

    def hidden(self, x_RLC: Tensor, sizes: Sequence[int], condition: Conditioning, cache: KVCache) -> Tensor:
        """All blocks, as `Var.hidden`."""
        layers, (R, L, _) = self.var.layers, x_RLC.shape
        takes_fp8 = layers[0].attn.mat_qkv.takes_fp8  # the same for all products of the blocks
        modulations = [m_R6C.unbind(1) for m_R6C in condition.blocks]  # gates, scales, shifts: attention's, the MLP's
        scale, shift = modulations[0][2], modulations[0][4]
        x_RLC, h_RLC = norm_modulated(x_RLC.contiguous(), None, None, scale, shift, takes_fp8(R * L))
        for i, block in enumerate(layers):
            last = i == len(layers) - 1
            wanted, queries = (sizes[-1], sizes[-1:]) if last else (L, sizes)
            gate1, gate2, _, scale2, _, shift2 = modulations[i]
            branch_RlC = self.attended(i, block, h_RLC, x_RLC.shape, wanted, queries, cache)
            x_RLC, h_RLC = norm_modulated(x_RLC[:, -wanted:], branch_RlC, gate1, scale2, shift2, takes_fp8(R * wanted))
            next_scale, next_shift = (None, None) if last else (modulations[i + 1][2], modulations[i + 1][4])
            branch_RlC = feed_forward(block, h_RLC, x_RLC)
            x_RLC, h_RLC = norm_modulated(x_RLC, branch_RlC, gate2, next_scale, next_shift, takes_fp8(R * L))
        cache.advance(sum(sizes))
        return x_RLC

    def attended(
        self,
        layer: int,
        block: Block,
        h_RLC: Tensor | Fp8Rows,
        shape: tuple[int, ...],
        wanted: int,
        queries: Sequence[int],
        cache: KVCache,
    ) -> Tensor:
        """Output of attention in one layer, [R, l, C]; h has `shape` [R, L, C]."""
        (R, L, C), attn, dtype = shape, block.attn, self.var.dtype
        bias = self.qkv_bias[layer]
        qkv = attn.mat_qkv.fp8(h_RLC, bias, dtype) if isinstance(h_RLC, Fp8Rows) else attn.mat_qkv(h_RLC, bias)
        stop = cache.filled + L
        kept_2RHLc = cache.room(layer, slice(0, R), stop)
        q_RHlc = place_heads(qkv.view(R, L, 3 * C), self.head_scale[layer], wanted, kept_2RHLc, cache.filled)
        out_RHlc = attend_by_scale(q_RHlc, kept_2RHLc[0, :, :, :stop], kept_2RHLc[1, :, :, :stop], queries)
        if attn.proj.takes_fp8(R * wanted):
            return attn.proj.fp8(merged_heads(out_RHlc), attn.proj.bias, dtype).view(R, wanted, C)
        return attn.merge(out_RHlc)

    def logits(self, x_RlC: Tensor, modulation_R2C: Tensor, guidance: ScaleGuidance | None, some: slice) -> Tensor:
        """Float32 [b, l, V] of the images `some`, as `Var.logits`."""
        h_blC = head_inputs(x_RlC.contiguous(), modulation_R2C, guidance, some)
        return product(h_blC.flatten(0, 1), self.head_weight, self.var.head.bias).view(*h_blC.shape[:2], -1)


def feed_forward(block: Block, h_RlC: Tensor | Fp8Rows, x_RlC: Tensor) -> Tensor:
    """MLP of h, [R, l, C] as x. On CUDA GELU is in the epilogue of the first product."""
    first, second = block.ffn.fc1, block.ffn.fc2
    if isinstance(h_RlC, Fp8Rows):
        hidden_NX = first.fp8(h_RlC, first.bias, x_RlC.dtype)
        return second.fp8(activated(hidden_NX), second.bias, x_RlC.dtype).view(x_RlC.shape)
    if first.packed is not None or effective_device(h_RlC.device).type != "cuda":
        return block.ffn(h_RlC)
    hidden_NX = torch._addmm_activation(first.bias, h_RlC.flatten(0, 1), first.weight.t(), use_gelu=True)
    return second(hidden_NX).view(h_RlC.shape)


def product(h_NC: Tensor, weight_VC: Tensor, bias_V: Tensor) -> Tensor:
    """h W + bias [N, V], summed and returned in float32."""
    if h_NC.dtype == torch.float32 or effective_device(h_NC.device).type != "cuda":
        return F.linear(h_NC.float(), weight_VC.float(), bias_V.float())
    return torch.mm(h_NC, weight_VC.t(), out_dtype=torch.float32).add_(bias_V)
