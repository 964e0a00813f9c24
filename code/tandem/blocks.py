"""Transformer blocks of VAR: attention with a KV cache, AdaLN, MLP.

Shapes: B rows (with CFG: conditional then unconditional), L tokens, C width, H heads, c head size.
Source: VAR (arXiv 2404.02905); tensor names follow its published checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.config import VarConfig

MAX_SCALE_MUL = math.log(100)


class KVCache:
    """Keys and values of all layers, allocated once: `length` tokens that later scales read again.

    The tokens of the last scale are never read by a later one, so they need no place here.
    """

    def __init__(self, config: VarConfig, rows: int, length: int, dtype: torch.dtype, device: torch.device):
        shape = (config.depth, 2, rows, config.heads, length, config.head_dim)
        self.store = torch.empty(shape, dtype=dtype, device=device)
        self.filled = 0

    @property
    def num_bytes(self) -> int:
        return self.store.numel() * self.store.element_size()

    def extend(self, layer: int, k_BHLc: Tensor, v_BHLc: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of everything up to and with the new tokens, kept where there is a place."""
        start, stop = self.filled, self.filled + k_BHLc.shape[2]
        k_all, v_all = self.store[layer]
        if stop <= k_all.shape[2]:
            k_all[:, :, start:stop] = k_BHLc
            v_all[:, :, start:stop] = v_BHLc
            return k_all[:, :, :stop], v_all[:, :, :stop]
        return (
            torch.cat([k_all[:, :, :start], k_BHLc], dim=2),
            torch.cat([v_all[:, :, :start], v_BHLc], dim=2),
        )

    def advance(self, num_tokens: int) -> None:
        """To be called once all layers have taken the new tokens."""
        self.filled += num_tokens


class SelfAttention(nn.Module):
    """q and k are l2-normalised; q is scaled per head by exp(min(scale_mul, log 100)); k has no bias."""

    def __init__(self, config: VarConfig):
        super().__init__()
        width = config.width
        self.heads, self.head_dim = config.heads, config.head_dim
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLC: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, L, C = x_BLC.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_BLC, self.mat_qkv.weight, bias).view(B, L, 3, self.heads, self.head_dim)
        q_BHLc, k_BHLc, v_BHLc = qkv.permute(2, 0, 3, 1, 4)
        q_BHLc = F.normalize(q_BHLc, dim=-1) * self.scale_mul_1H11.clamp_max(MAX_SCALE_MUL).exp()
        k_BHLc = F.normalize(k_BHLc, dim=-1)
        if cache is not None:
            k_BHLc, v_BHLc = cache.extend(layer, k_BHLc, v_BHLc)
        out_BHLc = F.scaled_dot_product_attention(q_BHLc, k_BHLc, v_BHLc, attn_mask=mask, scale=1.0)
        return self.proj(out_BHLc.transpose(1, 2).reshape(B, L, C))


class FeedForward(nn.Module):
    def __init__(self, config: VarConfig):
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BLC), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the class (AdaLN).

    Plain AdaLN has a linear layer a block; shared AdaLN adds a learned offset to one vector for all blocks.
    """

    def __init__(self, config: VarConfig):
        super().__init__()
        width = config.width
        self.attn = SelfAttention(config)
        self.ffn = FeedForward(config)
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / width**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulation(self, cond_BC: Tensor, shared_B6C: Tensor | None) -> tuple[Tensor, ...]:
        """Six vectors [B, 1, C]: gates, scales and shifts of attention and MLP. They depend on the class alone."""
        if shared_B6C is None:
            vectors = self.ada_lin(cond_BC).view(len(cond_BC), 1, 6, -1)
        else:
            vectors = self.ada_gss + shared_B6C.unsqueeze(1)
        return vectors.unbind(2)

    def forward(
        self,
        x_BLC: Tensor,
        modulation: tuple[Tensor, ...],
        layer: int,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation
        h_BLC = layer_norm(x_BLC) * (scale1 + 1) + shift1
        x_BLC = x_BLC + self.attn(h_BLC, layer, cache, mask) * gate1
        h_BLC = layer_norm(x_BLC) * (scale2 + 1) + shift2
        return x_BLC + self.ffn(h_BLC) * gate2


def layer_norm(x_BLC: Tensor) -> Tensor:
    """LayerNorm without weights."""
    return F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=1e-6)
