"""VAR, the next-scale transformer: one call per scale with a KV cache, or one call for all scales.

Shapes: B rows, L tokens, C width, D latent channels, V codes.
Source: VAR (arXiv 2404.02905); tensor names follow its published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tandem.blocks import Block, KVCache, layer_norm
from tandem.config import VarConfig


class HeadNorm(nn.Module):
    """AdaLN before the classifier head: scale and shift."""

    def __init__(self, width: int):
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def modulation(self, cond_BC: Tensor) -> tuple[Tensor, Tensor]:
        scale_B1C, shift_B1C = self.ada_lin(cond_BC).view(len(cond_BC), 1, 2, -1).unbind(2)
        return scale_B1C, shift_B1C

    def forward(self, x_BLC: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
        scale_B1C, shift_B1C = modulation
        return layer_norm(x_BLC) * (scale_B1C + 1) + shift_B1C


@dataclass(frozen=True)
class Conditioning:
    """All that a batch needs to know of its classes, computed once and used at every scale."""

    class_BC: Tensor
    blocks: list[tuple[Tensor, ...]]
    head: tuple[Tensor, Tensor]


class Var(nn.Module):
    """Predicts the tokens of a scale from those of all smaller ones. Class id `num_classes` means "no class"."""

    level_L: Tensor

    def __init__(self, config: VarConfig):
        super().__init__()
        self.config = config
        width, pyramid = config.width, config.pyramid
        self.word_embed = nn.Linear(config.latent_channels, width)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, pyramid.patch_nums[0] ** 2, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, pyramid.num_tokens, width))
        self.lvl_embed = nn.Embedding(pyramid.num_scales, width)
        if config.shared_adaln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, config.vocab_size)
        level_L = [scale for scale, n in enumerate(pyramid.patch_nums) for _ in range(n * n)]
        # on the CPU even where the weights are built without storage
        self.register_buffer("level_L", torch.tensor(level_L, device="cpu"), persistent=False)

    @property
    def layers(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def condition(self, labels_B: Tensor) -> Conditioning:
        """Modulation vectors of all blocks for labels int64 [B]."""
        class_BC = self.class_emb(labels_B)
        shared_B6C = None
        if self.config.shared_adaln:
            shared_B6C = self.shared_ada_lin(class_BC).view(len(class_BC), 6, -1)
        blocks = [block.modulation(class_BC, shared_B6C) for block in self.layers]
        return Conditioning(class_BC, blocks, self.head_nm.modulation(class_BC))

    def embed_start(self, condition: Conditioning) -> Tensor:
        """Input of the first scale: the class at every position, float [B, l, C]."""
        length = self.pos_start.shape[1]
        start_BlC = condition.class_BC.unsqueeze(1) + self.pos_start
        return start_BlC + self.positions(0, length)

    def embed(self, inputs_BlD: Tensor, start: int) -> Tensor:
        """Input of later tokens from position `start` on, from resized f_hat [B, l, D]: float [B, l, C]."""
        stop = start + inputs_BlD.shape[1]
        return self.word_embed(inputs_BlD.to(self.word_embed.weight.dtype)) + self.positions(start, stop)

    def positions(self, start: int, stop: int) -> Tensor:
        """Level plus position embedding of tokens start..stop: float [1, l, C]."""
        return self.lvl_embed(self.level_L[None, start:stop]) + self.pos_1LC[:, start:stop]

    def mask(self, length: int) -> Tensor:
        """Block-causal mask bool [L, L]: a token sees its own scale and all smaller ones."""
        level_L = self.level_L[:length]
        return level_L[:, None] >= level_L[None, :]

    def hidden(self, x_BLC: Tensor, condition: Conditioning, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        """All blocks over new tokens [B, L, C]; what came before is read from `cache`."""
        for layer, (block, modulation) in enumerate(zip(self.layers, condition.blocks, strict=True)):
            x_BLC = block(x_BLC, modulation, layer, cache, mask)
        if cache is not None:
            cache.advance(x_BLC.shape[1])
        return x_BLC

    def logits(self, x_BLC: Tensor, condition: Conditioning) -> Tensor:
        """Head over hidden states: float32 [B, L, V]."""
        return self.head(self.head_nm(x_BLC, condition.head)).float()

    def forward(self, labels_B: Tensor, inputs_BlD: Tensor) -> Tensor:
        """Teacher-forced logits float32 [B, L, V] from `Quantizer.unroll`'s inputs of the scales after the first."""
        condition = self.condition(labels_B)
        start_BlC = self.embed_start(condition)
        x_BLC = torch.cat([start_BlC, self.embed(inputs_BlD, start_BlC.shape[1])], dim=1)
        return self.logits(self.hidden(x_BLC, condition, None, self.mask(x_BLC.shape[1])), condition)
