"""Transformer blocks of VAR: attention, AdaLN, MLP.

Shapes: R rows (with CFG: conditional then unconditional), L tokens, C width, H heads, c head size.
Source: VAR (arXiv 2404.02905); tensor names follow its published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.config import VarConfig
from tandem.linear import Linear
from tandem.precision import at_least_float32

MAX_SCALE_MUL = math.log(100)
MIN_NORM = 1e-12

# Attention on q, k, v [R, H, L, c] of new tokens: returns out [R, H, l, c] for the last l of them
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# Modulation vectors [R, 6, C] of a block, or what makes them in the block's forward
Modulation = Tensor | Callable[[], Tensor]


class SelfAttention(nn.Module):
    """q and k are l2-normalised; q is scaled per head by exp(min(scale_mul, log 100)); k has no bias.

    Models with `attn_l2_norm=False` in the published code normalise neither, and scale q by 0.25 / sqrt(c).
    """

    def __init__(self, config: VarConfig):
        super().__init__()
        width = config.width
        self.heads, self.head_dim = config.heads, config.head_dim
        self.l2_norm = config.l2_norm
        if self.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4)))
        self.mat_qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)

    def project(self, x_RLC: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
        """q [R, H, l, c] of the last `wanted` = l tokens, k and v [R, H, L, c] of all."""
        R, L, _ = x_RLC.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = self.mat_qkv(x_RLC, bias).view(R, L, 3, self.heads, self.head_dim)
        if not self.l2_norm:
            q_RHLc, k_RHLc, v_RHLc = qkv.permute(2, 0, 3, 1, 4)
            return q_RHLc[:, :, L - wanted :] * (0.25 / math.sqrt(self.head_dim)), k_RHLc, v_RHLc
        # norms in float32: an error in one would scale the whole vector
        qk_RLsHc = at_least_float32(qkv[:, :, :2])
        qk_RLsHc = qk_RLsHc * torch.linalg.vector_norm(qk_RLsHc, dim=-1, keepdim=True).clamp_min(MIN_NORM).reciprocal()
        q_RHLc, k_RHLc = qk_RLsHc.permute(2, 0, 3, 1, 4)
        scale_1H11 = at_least_float32(self.scale_mul_1H11).clamp_max(MAX_SCALE_MUL).exp()
        q_RHlc = (q_RHLc[:, :, L - wanted :] * scale_1H11).to(qkv.dtype)
        return q_RHlc, k_RHLc.to(qkv.dtype), qkv[:, :, 2].transpose(1, 2)

    def merge(self, out_RHlc: Tensor) -> Tensor:
        """Merge the heads' outputs and project them: [R, l, C]."""
        return self.proj(out_RHlc.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: VarConfig):
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.fc1 = Linear(config.width, hidden, gelu=True)
        self.fc2 = Linear(hidden, config.width)

    def forward(self, x_RLC: Tensor) -> Tensor:
        return self.fc2(self.fc1(x_RLC))


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the class (AdaLN).

    Plain AdaLN has a linear layer per block; shared AdaLN adds a learned offset to vectors that all blocks share.
    """

    def __init__(self, config: VarConfig):
        super().__init__()
        width = config.width
        self.attn = SelfAttention(config)
        self.ffn = FeedForward(config)
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / width**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))

    @property
    def products(self) -> tuple[Linear, Linear, Linear, Linear]:
        """Layers that every token goes through."""
        return self.attn.mat_qkv, self.attn.proj, self.ffn.fc1, self.ffn.fc2

    def modulation(self, cond_RC: Tensor, shared_R6C: Tensor | None) -> Tensor:
        """Six vectors [R, 6, C]: gates, scales and shifts of attention and MLP. They depend only on the class."""
        if shared_R6C is None:
            return self.ada_lin(cond_RC).view(len(cond_RC), 6, -1)
        return self.ada_gss[0] + shared_R6C

    def before(self, x_RLC: Tensor, modulation_R6C: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
        """What attention needs: q [R, H, l, c] of the last `wanted` = l tokens, k and v [R, H, L, c] of all."""
        _, _, scale1, _, shift1, _ = modulation_R6C.unsqueeze(2).unbind(1)
        return self.attn.project(torch.addcmul(shift1, layer_norm(x_RLC), scale1 + 1), wanted)

    def after(self, x_RlC: Tensor, out_RHlc: Tensor, modulation_R6C: Tensor) -> Tensor:
        """New hidden states [R, l, C] from the old ones and the attention output."""
        gate1, gate2, _, scale2, _, shift2 = modulation_R6C.unsqueeze(2).unbind(1)
        x_RlC = torch.addcmul(x_RlC, self.attn.merge(out_RHlc), gate1)
        h_RlC = torch.addcmul(shift2, layer_norm(x_RlC), scale2 + 1)
        return torch.addcmul(x_RlC, self.ffn(h_RlC), gate2)

    def forward(self, x_RLC: Tensor, modulation: Modulation, attend: Attend, wanted: int | None = None) -> Tensor:
        """New hidden states [R, l, C] of the last `wanted` = l tokens (None: of all); `attend` sees k and v of all."""
        modulation_R6C = modulation if isinstance(modulation, Tensor) else modulation()
        wanted = x_RLC.shape[1] if wanted is None else wanted
        out_RHlc = attend(*self.before(x_RLC, modulation_R6C, wanted))
        return self.after(x_RLC[:, -wanted:], out_RHlc, modulation_R6C)


def layer_norm(x_RLC: Tensor) -> Tensor:
    """LayerNorm without weights."""
    return F.layer_norm(x_RLC, x_RLC.shape[-1:], eps=1e-6)
