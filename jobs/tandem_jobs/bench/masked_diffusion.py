"""The networks of MAR (arXiv 2406.11838) by its published shapes: encoder, decoder, and the diffusion of a token.

Only its time is of interest: positions, masks and the class are constants. Shapes: R rows, n known tokens with the
buffer, m masked tokens, C channels of the transformers, T tokens to be drawn, c channels of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIMES = 256  # channels of the embedding of the time


class MaskedDiffusion(nn.Module):
    """Encoder and decoder of `depth` blocks each, and a head of `mlp_depth` residual blocks."""

    channels = 16  # c, of the published KL-16 autoencoder

    def __init__(self, width: int, depth: int, heads: int, mlp_width: int, mlp_depth: int):
        super().__init__()
        self.encoder, self.decoder = (nn.ModuleList(block(width, heads) for _ in range(depth)) for _ in range(2))
        self.head = TokenDiffusion(self.channels, width, mlp_width, mlp_depth)

    def backbone(self, x_RnC: Tensor, masked: int) -> Tensor:
        """The decoder's output [R, n + m, C]."""
        for layer in self.encoder:
            x_RnC = layer(x_RnC)
        x_RLC = torch.cat([x_RnC, x_RnC.new_zeros(len(x_RnC), masked, x_RnC.shape[2])], dim=1)
        for layer in self.decoder:
            x_RLC = layer(x_RLC)
        return x_RLC


def block(width: int, heads: int) -> nn.TransformerEncoderLayer:
    """A block of a vision transformer."""
    return nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)


class TokenDiffusion(nn.Module):
    """One denoising step of T tokens: a residual network, modulated by the decoder's output and the time."""

    def __init__(self, channels: int, condition: int, width: int, depth: int):
        super().__init__()
        self.into, self.condition = nn.Linear(channels, width), nn.Linear(condition, width)
        self.time = nn.Sequential(nn.Linear(TIMES, width), nn.SiLU(), nn.Linear(width, width))
        self.modulations = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.last_modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, 2 * channels)

    def forward(self, x_Tc: Tensor, condition_TC: Tensor) -> Tensor:
        """Mean and variance of the noise [T, 2 c]."""
        x, width = self.into(x_Tc), self.into.out_features
        y = F.silu(self.condition(condition_TC) + self.time(x_Tc.new_zeros(len(x_Tc), TIMES)))
        for modulation, mlp in zip(self.modulations, self.blocks, strict=True):
            shift, scale, gate = modulation(y).chunk(3, dim=-1)
            x = x + gate * mlp(F.layer_norm(x, (width,)) * (1 + scale) + shift)
        shift, scale = self.last_modulation(y).chunk(2, dim=-1)
        return self.out(F.layer_norm(x, (width,)) * (1 + scale) + shift)
