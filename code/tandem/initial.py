"""Weights before training."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from tandem.var import Var
from tandem.vqvae import AttnBlock, ResnetBlock, Vqvae


@torch.no_grad()
def init_vqvae(vqvae: Vqvae) -> None:
    """Every residual branch starts at zero: on the embedded model's data, 1 dB ahead after 100 steps."""
    for module in vqvae.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(cast(Tensor, module.conv2.bias))
        elif isinstance(module, AttnBlock):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(cast(Tensor, module.proj_out.bias))


def init_var(var: Var, head_scale: float = 0.02) -> None:
    """Initial weights by the rule of the published code: truncated normals, small head, gates near zero."""
    width, depth = var.config.width, var.config.depth
    std = math.sqrt(1 / width / 3)
    for module in var.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for table in (var.pos_start, var.pos_1LC):
        nn.init.trunc_normal_(table, std=std)
    with torch.no_grad():
        var.head.weight.mul_(head_scale)
        cast(nn.Linear, var.head_nm.ada_lin[1]).weight.mul_(0.5)
        for block in var.layers:
            block.attn.proj.weight.div_(math.sqrt(2 * depth))
            block.ffn.fc2.weight.div_(math.sqrt(2 * depth))
            if not var.config.shared_adaln:
                modulation = cast(nn.Linear, block.ada_lin[1]).weight
                modulation[2 * width :].mul_(0.5)
                modulation[: 2 * width].mul_(1e-5)
