"""Weights before training."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from tandem.assembly import PLAIN, Preparation, assemble_var, assemble_vqvae, build_empty
from tandem.config import VarConfig, VqvaeConfig
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


def random_var(
    config: VarConfig,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    preparation: Preparation | None = PLAIN,
    head_scale: float = 1.0,
) -> Var:
    """Random weights, ready for inference, to try size and speed; without preparation, to be trained.

    Made tensor by tensor: no float32 copy of all.
    """
    torch.manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in build_empty(config).named_parameters()}
    return assemble_var(
        config, lambda name: initial_value(name, shapes[name], config, head_scale), dtype, device, preparation
    )


def random_vqvae(
    config: VqvaeConfig, seed: int, dtype: torch.dtype, device: torch.device, preparation: Preparation = PLAIN
) -> Vqvae:
    """A tokenizer of random weights, ready for inference, to try size and speed."""
    torch.manual_seed(seed)
    values = Vqvae(config).state_dict()
    return assemble_vqvae(config, values.__getitem__, dtype, device, preparation)


def initial_value(name: str, shape: torch.Size, config: VarConfig, head_scale: float) -> Tensor:
    """A float32 tensor of a Var before training, by its name."""
    width = config.width
    if name.endswith("bias"):
        return torch.zeros(shape)
    if name.endswith("scale_mul_1H11"):
        return torch.full(shape, math.log(4))
    if name.endswith("ada_gss"):
        return torch.randn(shape) / math.sqrt(width)
    value = nn.init.trunc_normal_(torch.empty(shape), std=math.sqrt(1 / width / 3))
    if name == "head.weight":
        value *= head_scale
    elif name.startswith("head_nm."):
        value *= 0.5
    elif name.endswith(("attn.proj.weight", "ffn.fc2.weight")):
        value /= math.sqrt(2 * config.depth)
    elif name.startswith("blocks.") and "ada_lin" in name:
        value[2 * width :] *= 0.5
        value[: 2 * width] *= 1e-5
    return value
