"""Image tokenizer: pixels <-> latents, with the multi-scale quantizer between.

Shapes: B batch, C channels, h w grid, L tokens. Pixels are float [B, 3, H, W] in [-1, 1].
Source: the VQVAE of VAR (arXiv 2404.02905), itself that of VQGAN; tensor names follow the published checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.config import VqvaeConfig
from tandem.limits import limits
from tandem.precision import full_precision
from tandem.quantizer import Quantizer

if TYPE_CHECKING:
    from tandem.fused_vqvae import FusedDecoder
    from tandem.graphs import Graphs


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x_BChw: Tensor) -> Tensor:
        h_BChw = self.conv1(F.silu(self.norm1(x_BChw)))
        h_BChw = self.conv2(F.silu(self.norm2(h_BChw)))
        return self.nin_shortcut(x_BChw) + h_BChw


class AttnBlock(nn.Module):
    """Single-head self-attention over the grid."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        q, k, v = (t.flatten(2).transpose(1, 2) for t in self.qkv(self.norm(x_BChw)).chunk(3, dim=1))
        h_BLC = F.scaled_dot_product_attention(q, k, v)
        return x_BChw + self.proj_out(h_BLC.transpose(1, 2).reshape_as(x_BChw))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(F.pad(x_BChw, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3 x 3 convolution.

    Doubling repeats inputs, so each output pixel depends on only 2 x 2 of them. `fold` sums the weights of equal
    inputs: one 2 x 2 convolution then makes the four pixels of every input, with 4/9 of the work.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.folded: nn.Conv2d | None = None

    def fold(self) -> None:
        """For inference only: replace the 3 x 3 weights by 2 x 2 ones, summed in their dtype."""
        if self.folded is not None:
            return
        weight, bias = self.conv.weight.detach(), self.conv.bias
        assert bias is not None
        # even rows and columns: the first weight is for the neighbour, the other two for the input; odd: the reverse
        first, second = ((0, 1), (1, 3)), ((0, 2), (2, 3))
        kernels = [
            torch.stack(
                [torch.stack([weight[:, :, a:b, c:d].sum((2, 3)) for c, d in columns], -1) for a, b in rows], -2
            )
            for rows in (first, second)
            for columns in (first, second)
        ]
        self.folded = nn.Conv2d(weight.shape[1], 4 * len(weight), 2, padding=1, device="meta")
        self.folded.weight = nn.Parameter(torch.cat(kernels), requires_grad=False)
        self.folded.bias = nn.Parameter(bias.detach().repeat(4), requires_grad=False)
        del self.conv

    def forward(self, x_BChw: Tensor) -> Tensor:
        if self.folded is None:
            return self.conv(F.interpolate(x_BChw, scale_factor=2, mode="nearest"))
        B, C, h, w = x_BChw.shape
        four = self.folded(x_BChw).unflatten(1, (4, C))
        out_BChw = x_BChw.new_empty((B, C, 2 * h, 2 * w)).to(memory_format=memory_format(x_BChw))
        for i, (a, b) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            out_BChw[:, :, a::2, b::2] = four[:, i, :, a : a + h, b : b + w]
        return out_BChw


def memory_format(x_BChw: Tensor) -> torch.memory_format:
    last = x_BChw.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention at the lowest one."""

    downsample: Downsample  # in an encoder, except at the lowest resolution
    upsample: Upsample  # in a decoder, except at the highest one

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, attention: bool):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(num_blocks)
        )
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(num_blocks if attention else 0))

    def forward(self, x_BChw: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x_BChw = block(x_BChw)
            if self.attn:
                x_BChw = self.attn[i](x_BChw)
        return x_BChw


def levels(modules: nn.ModuleList) -> list[Level]:
    return cast("list[Level]", list(modules))


def middle(channels: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "block_1": ResnetBlock(channels, channels),
            "attn_1": AttnBlock(channels),
            "block_2": ResnetBlock(channels, channels),
        }
    )


class Encoder(nn.Module):
    def __init__(self, config: VqvaeConfig):
        super().__init__()
        self.stem_patch = config.stem_patch
        widths = [config.base_channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(3 * config.stem_patch**2, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            before = widths[i - 1] if i else config.base_channels
            level = Level(before, width, config.num_res_blocks, attention=lowest)
            if not lowest:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        h_BChw = self.conv_in(F.pixel_unshuffle(x_B3HW, self.stem_patch))
        for i, level in enumerate(levels(self.down)):
            h_BChw = level(h_BChw)
            if i < len(self.down) - 1:
                h_BChw = level.downsample(h_BChw)
        for layer in self.mid.values():
            h_BChw = layer(h_BChw)
        return self.conv_out(F.silu(self.norm_out(h_BChw)))


class Decoder(nn.Module):
    def __init__(self, config: VqvaeConfig):
        super().__init__()
        self.stem_patch = config.stem_patch
        widths = [config.base_channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1])
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            before = width if lowest else widths[i + 1]
            level = Level(before, width, config.num_res_blocks + 1, attention=lowest)
            if i > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3 * config.stem_patch**2, 3, padding=1)

    def forward(self, z_BChw: Tensor) -> Tensor:
        h_BChw = self.conv_in(z_BChw)
        for layer in self.mid.values():
            h_BChw = layer(h_BChw)
        for i, level in reversed(list(enumerate(levels(self.up)))):
            h_BChw = level(h_BChw)
            if i > 0:
                h_BChw = level.upsample(h_BChw)
        h_BChw = self.conv_out(F.silu(self.norm_out(h_BChw)))
        return F.pixel_shuffle(h_BChw, self.stem_patch)


class Vqvae(nn.Module):
    """Pixels [-1, 1] -> token ids -> pixels. One tokenizer serves drafters and refiners of every depth."""

    def __init__(self, config: VqvaeConfig):
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.pyramid, config.vocab_size, channels, config.quant_resi, config.num_phi)
        self.quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.fused: FusedDecoder | None = None  # fused GPU kernels in place of the decoder's own steps
        self.graphs: Graphs | None = None

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> continuous latents float [B, C, h, w]."""
        with full_precision():
            return self.quant_conv(self.encoder(pixels_B3HW))

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> token ids int64 [B, L], small scale to large."""
        return self.quantize.encode(self.latents(pixels_B3HW).float())

    def decode_latents(self, f_hat_BChw: Tensor) -> Tensor:
        """f_hat -> pixels, not clamped: float [B, 3, H, W]."""
        decoder = self.decoder if self.fused is None else self.fused
        with full_precision():
            return decoder(self.post_quant_conv(f_hat_BChw))

    def decode(self, f_hat_BChw: Tensor) -> Tensor:
        """f_hat float [B, C, h, w] -> pixels float32 [B, 3, H, W] in [0, 1]."""
        dtype = self.post_quant_conv.weight.dtype
        groups = f_hat_BChw.to(dtype).split(self.images_at_once(f_hat_BChw.device))
        pixels_B3HW = torch.cat([self.decode_latents(group_BChw).float() for group_BChw in groups])
        return pixels_B3HW.clamp_(-1, 1).add_(1).mul_(0.5)

    def decode_ids(
        self, ids_BL: Tensor, source_BL: Tensor | None = None, drawn_Bhw: Tensor | None = None
    ) -> tuple[Tensor]:
        """Token ids int64 [B, L] -> pixels float32 [B, 3, H, W] in [0, 1]. Of an edit also the ids of its source, whose
        f_hat stands where no cell is drawn anew."""
        f_hat_BChw = self.quantize.unroll(ids_BL)[0]
        if source_BL is not None and drawn_Bhw is not None:
            f_hat_BChw = torch.where(drawn_Bhw[:, None], f_hat_BChw, self.quantize.unroll(source_BL)[0])
        return (self.decode(f_hat_BChw),)

    def images_at_once(self, device: torch.device) -> int:
        """Images that are decoded together: as many as the limit of the widest feature map allows."""
        config = self.config
        side = config.image_size // config.stem_patch
        widest = config.base_channels * side * side * self.post_quant_conv.weight.element_size()
        return max(1, limits(device).map_bytes // widest)


def to_float(pixels: Tensor) -> Tensor:
    """Pixels uint8 [..] -> float32 [-1, 1], as the encoder takes them."""
    return pixels.float().div(127.5).sub(1)


def rounded(pixels_B3HW: Tensor) -> Tensor:
    """Pixels float [B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3], rounded to nearest."""
    return pixels_B3HW.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
