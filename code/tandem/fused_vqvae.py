"""VQVAE decode with fused kernels: feature maps stay in NHWC, and a GroupNorm reads its map twice.

`FusedDecoder` computes what `Decoder.forward` defines; `FusedQuantizer` what `Quantizer.residual` defines: bicubic
resizing is a product with a fixed matrix, and (1 - r) x + r conv(x) is one convolution.

Shapes: B images, P pixels, C channels, h w grid, L tokens of a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.kernels import power_of_two
from tandem.precision import full_precision
from tandem.triton_kernels import add_and_measure, group_factors, scale_and_activate

VALUES = 2048  # of a map in one program
MOST_TILES = 128  # of a map, each with its own statistics
LEAST_TILE = 64  # pixels
OUTPUTS = 64  # the last convolution is padded to a multiple of channels: cuDNN is slow with few


@dataclass(frozen=True)
class Measured:
    """A feature map in NHWC, with statistics that include a bias which the map may lack.

    Attributes:
        x_BChw: channels last.
        before_C: the bias that x lacks, or zeros.
        mean: float32 [B, tiles, C] of each channel in each tile of pixels.
        squares: float32 [B, tiles, C], squared deviations from that mean, summed.
    """

    x_BChw: Tensor
    before_C: Tensor
    mean: Tensor
    squares: Tensor
    tile_pixels: int


def tile_of(pixels: int) -> int:
    """Pixels of a tile."""
    return max(LEAST_TILE, power_of_two(-(-pixels // MOST_TILES)))


def block_of(channels: int) -> tuple[int, int]:
    """(pixels, channels) that one program holds at once."""
    block = power_of_two(channels)
    return max(1, VALUES // block), block


def measure(
    x_BChw: Tensor, bias_C: Tensor, other_BChw: Tensor | None = None, keep: bool = True, doubled: bool = False
) -> Measured:
    """x + other + bias with its statistics. `keep` False: the sum is not stored, and the map is x without the bias.

    `doubled`: x holds the four output pixels of every input of a folded `Upsample`, [B, 4 C, h + 1, w + 1].
    """
    x_BChw = x_BChw.contiguous(memory_format=torch.channels_last)
    B, C, h, w = x_BChw.shape
    if doubled:
        C, h, w = C // 4, 2 * (h - 1), 2 * (w - 1)
    total = x_BChw
    if keep:
        total = torch.empty((B, C, h, w), dtype=x_BChw.dtype, device=x_BChw.device, memory_format=torch.channels_last)
    tile, (rows, block) = tile_of(h * w), block_of(C)
    tiles = -(-h * w // tile)
    mean, squares = (torch.empty(B, tiles, C, dtype=torch.float32, device=x_BChw.device) for _ in range(2))
    if other_BChw is not None:
        other_BChw = other_BChw.contiguous(memory_format=torch.channels_last)
    add_and_measure[(B, tiles)](
        x_BChw, other_BChw, bias_C, total, mean, squares, h * w, C, tile, w,
        HAS_OTHER=other_BChw is not None, HAS_TOTAL=keep, DOUBLED=doubled, ROWS=rows, BLOCK=block,
    )  # fmt: skip
    return Measured(total, torch.zeros_like(bias_C) if keep else bias_C, mean, squares, tile)


def normed(measured: Measured, norm: nn.GroupNorm, silu: bool) -> Tensor:
    """GroupNorm of a map from its statistics, then SiLU if asked for: [B, C, h, w], channels last."""
    x_BChw, tiles = measured.x_BChw, measured.mean.shape[1]
    B, C, h, w = x_BChw.shape
    group, (rows, block) = C // norm.num_groups, block_of(C)
    factor, offset = (torch.empty(B, C, dtype=torch.float32, device=x_BChw.device) for _ in range(2))
    group_factors[(B, norm.num_groups)](
        measured.mean, measured.squares, norm.weight, norm.bias, measured.before_C, factor, offset, h * w, C, group,
        tiles, measured.tile_pixels, norm.eps, TILES=power_of_two(tiles), GROUP=power_of_two(group),
    )  # fmt: skip
    out = torch.empty_like(x_BChw, memory_format=torch.channels_last)
    scale_and_activate[(B, -(-h * w // rows))](x_BChw, factor, offset, out, h * w, C, SILU=silu, ROWS=rows, BLOCK=block)
    return out


def convolved(layer: nn.Conv2d, x_BChw: Tensor) -> Tensor:
    """A convolution without its bias, which a later kernel adds."""
    return F.conv2d(x_BChw, layer.weight, None, layer.stride, cast(Any, layer.padding))


class FusedDecoder:
    """The decoder of one VQVAE, prepared for inference."""

    def __init__(self, decoder: Any):
        self.decoder = decoder
        weight = decoder.conv_out.weight.detach()
        padded = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, -len(weight) % OUTPUTS))
        self.weight = padded.contiguous(memory_format=torch.channels_last)

    def __call__(self, z_BChw: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> pixels [B, 3, H, W], as `Decoder.forward`."""
        decoder = self.decoder
        z_BChw = z_BChw.contiguous(memory_format=torch.channels_last)
        x = measure(convolved(decoder.conv_in, z_BChw), decoder.conv_in.bias)
        x = self.attention(decoder.mid["attn_1"], self.residual(decoder.mid["block_1"], x))
        x = self.residual(decoder.mid["block_2"], x)
        for i, level in reversed(list(enumerate(decoder.up))):
            for j, block in enumerate(level.block):
                x = self.residual(block, x)
                if level.attn:
                    x = self.attention(level.attn[j], x)
            if i > 0:
                folded = level.upsample.folded
                four = convolved(folded, x.x_BChw)
                x = measure(four, folded.bias[: four.shape[1] // 4], doubled=True)
        h_BChw = normed(x, decoder.norm_out, silu=True)
        bias_C11 = decoder.conv_out.bias[:, None, None]
        out_BChw = F.conv2d(h_BChw, self.weight, padding=1)[:, : len(bias_C11)] + bias_C11
        return F.pixel_shuffle(out_BChw, decoder.stem_patch)

    def residual(self, block: Any, x: Measured) -> Measured:
        """A ResnetBlock."""
        h_BChw = convolved(block.conv1, normed(x, block.norm1, silu=True))
        h = measure(h_BChw, block.conv1.bias, keep=False)
        h_BChw = convolved(block.conv2, normed(h, block.norm2, silu=True))
        if isinstance(block.nin_shortcut, nn.Identity):
            return measure(h_BChw, block.conv2.bias, x.x_BChw)
        bias_C = block.conv2.bias + block.nin_shortcut.bias
        return measure(h_BChw, bias_C, convolved(block.nin_shortcut, x.x_BChw))

    def attention(self, block: Any, x: Measured) -> Measured:
        """An AttnBlock."""
        q, k, v = (t.flatten(2).transpose(1, 2) for t in block.qkv(normed(x, block.norm, silu=False)).chunk(3, dim=1))
        h_BLC = F.scaled_dot_product_attention(q, k, v)
        h_BChw = h_BLC.transpose(1, 2).reshape(x.x_BChw.shape)
        return measure(convolved(block.proj_out, h_BChw), block.proj_out.bias, x.x_BChw)


class FusedQuantizer:
    """Residuals of one quantizer, prepared for inference."""

    def __init__(self, quantizer: Any):
        self.quantizer = quantizer
        pyramid, device = quantizer.pyramid, quantizer.embedding.weight.device
        grid, last = pyramid.grid, pyramid.num_scales - 1
        self.resize = [resizing(n, grid).to(device) for n in pyramid.patch_nums[:last]]
        phis = [quantizer.quant_resi.at(scale / last) for scale in range(pyramid.num_scales)]
        self.phi = [(merged_weight(phi), phi.bias.detach() * phi.ratio) for phi in phis]

    def residual(self, ids_BL: Tensor, scale: int) -> Tensor:
        """Float [B, C, h, w], channels last, as `Quantizer.residual`."""
        grid = self.quantizer.pyramid.grid
        code_BLC = self.quantizer.embedding(ids_BL)
        if scale < len(self.resize):
            code_BLC = self.resize[scale] @ code_BLC
        code_BChw = code_BLC.view(len(ids_BL), grid, grid, -1).permute(0, 3, 1, 2)
        weight, bias = self.phi[scale]
        with full_precision():
            return F.conv2d(code_BChw, weight, bias, padding=1)


def resizing(size: int, grid: int) -> Tensor:
    """Bicubic resizing of size x size values to grid x grid, as a matrix float32 [grid^2, size^2]."""
    each = torch.eye(size * size).view(size * size, 1, size, size)
    return F.interpolate(each, size=(grid, grid), mode="bicubic").flatten(1).t().contiguous()


def merged_weight(phi: Any) -> Tensor:
    """Weights of the one convolution that equals (1 - r) x + r conv(x)."""
    weight = phi.weight.detach() * phi.ratio
    middle = torch.zeros_like(weight)
    middle[:, :, 1, 1] = torch.eye(len(weight), device=weight.device) * (1 - phi.ratio)
    return (weight + middle).contiguous(memory_format=torch.channels_last)
