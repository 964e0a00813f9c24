"""Multi-scale residual quantizer: token maps <-> f_hat, and the input of the next scale.

Shapes: B batch, L tokens of all scales, l tokens of one scale, C latent channels, h w latent grid, V codes.
Source: VAR (arXiv 2404.02905), algorithms 1 and 2; tensor names follow its published checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.config import Pyramid
from tandem.precision import full_precision

if TYPE_CHECKING:
    from tandem.edit_source import Source
    from tandem.fused_vqvae import FusedQuantizer


class Phi(nn.Conv2d):
    """Residual convolution applied to every upsampled token map: (1 - r) x + r conv(x)."""

    def __init__(self, channels: int, ratio: float):
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, x_BChw: Tensor) -> Tensor:
        with full_precision():
            return x_BChw * (1 - self.ratio) + super().forward(x_BChw) * self.ratio


class SharedPhi(nn.Module):
    """A few convolutions shared by all scales: each scale uses the one whose tick is nearest."""

    def __init__(self, channels: int, ratio: float, num_phi: int):
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(channels, ratio) for _ in range(num_phi))
        margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
        self.ticks = np.linspace(margin, 1 - margin, num_phi)

    def at(self, position: float) -> nn.Module:
        """The convolution for a scale at `position` in [0, 1]."""
        # two of 10 scales lie midway between ticks, up to rounding: keep the published expression
        return self.qresi_ls[int(np.argmin(np.abs(self.ticks - position)))]


class Quantizer(nn.Module):
    """Codebook and pyramid. Token ids are int64 [B, L], small scale to large."""

    def __init__(self, pyramid: Pyramid, vocab_size: int, channels: int, quant_resi: float, num_phi: int):
        super().__init__()
        self.pyramid = pyramid
        self.vocab_size, self.channels = vocab_size, channels
        self.embedding = nn.Embedding(vocab_size, channels)
        self.quant_resi = SharedPhi(channels, quant_resi, num_phi)
        self.fused: FusedQuantizer | None = None  # replaces `residual` on a GPU

    def nearest_code(self, x_NC: Tensor) -> Tensor:
        """Id of the nearest code (squared distance) of every row: int64 [N]."""
        codes_VC = self.embedding.weight
        distance_NV = x_NC.square().sum(1, keepdim=True) + codes_VC.square().sum(1)
        return torch.addmm(distance_NV, x_NC, codes_VC.T, alpha=-2).argmin(1)

    def residual(self, ids_Bl: Tensor, scale: int) -> Tensor:
        """Contribution of the token map of `scale` (0-based) to f_hat: float [B, C, h, w]."""
        if self.fused is not None:
            return self.fused.residual(ids_Bl, scale)
        size, grid = self.pyramid.patch_nums[scale], self.pyramid.grid
        code_BChw = self.embedding(ids_Bl).transpose(1, 2).reshape(len(ids_Bl), self.channels, size, size)
        if scale < self.pyramid.num_scales - 1:
            code_BChw = F.interpolate(code_BChw, size=(grid, grid), mode="bicubic")
        return self.quant_resi.at(scale / (self.pyramid.num_scales - 1))(code_BChw)

    def next_input(self, f_hat_BChw: Tensor, scale: int) -> Tensor:
        """f_hat resized by area to the grid of `scale`, as the transformer takes it: float [B, l, C]."""
        size = self.pyramid.patch_nums[scale]
        return F.interpolate(f_hat_BChw, size=(size, size), mode="area").flatten(2).transpose(1, 2)

    def zeros(self, batch: int, device: torch.device | None = None) -> Tensor:
        """f_hat before the first token map: float [B, C, h, w]."""
        grid = self.pyramid.grid
        weight = self.embedding.weight
        return torch.zeros(batch, self.channels, grid, grid, dtype=weight.dtype, device=device or weight.device)

    def split(self, ids_BL: Tensor) -> list[Tensor]:
        """Token maps of the scales that `ids_BL` holds completely, small to large."""
        length = ids_BL.shape[1]
        if length not in self.pyramid.offsets:
            raise ValueError(f"expected whole scales, one of {self.pyramid.offsets} tokens, got {length}")
        num_scales = self.pyramid.offsets.index(length)
        o = self.pyramid.offsets
        return [ids_BL[:, o[k] : o[k + 1]] for k in range(num_scales)]

    def unroll(self, ids_BL: Tensor, source: Source | None = None) -> tuple[Tensor, Tensor]:
        """Token maps of the first n scales -> (f_hat [B, C, h, w], inputs of scales 1..n [B, l, C]).

        The input of scale 0 is the class embedding, so the inputs start at the second scale; after the
        last scale of the pyramid there is no further input. `source`: keep it outside its cells, as in `Latents`.
        """
        latents = Latents(self, len(ids_BL), ids_BL.device, source)
        inputs_BlC = latents.extend(ids_BL)
        return latents.f_hat_BChw, inputs_BlC

    def encode(self, f_BChw: Tensor) -> Tensor:
        """Latents -> token ids of all scales: int64 [B, L]. Each scale codes the residual of the previous ones."""
        rest_BChw, ids = f_BChw, []
        for scale, size in enumerate(self.pyramid.patch_nums):
            last = scale == self.pyramid.num_scales - 1
            pooled = rest_BChw if last else F.interpolate(rest_BChw, size=(size, size), mode="area")
            ids_N = self.nearest_code(pooled.permute(0, 2, 3, 1).reshape(-1, self.channels))
            ids.append(ids_N.view(len(f_BChw), -1))
            rest_BChw = rest_BChw - self.residual(ids[-1], scale)
        return torch.cat(ids, dim=1)


class Latents:
    """f_hat of a batch while token maps are added to it, scale after scale.

    With a source, f_hat outside the cells that are drawn anew is the source's own after as many scales. A cell's f_hat
    is the sum of what the token maps add there, so inside it is that of the drawn maps alone.

    Attributes:
        f_hat_BChw: after the scales so far, float [B, C, h, w].
    """

    def __init__(self, quantizer: Quantizer, batch: int, device: torch.device, source: Source | None = None):
        self.quantizer, self.source, self.scale = quantizer, source, 0
        self.f_hat_BChw = quantizer.zeros(batch, device)
        self.kept_BChw = None if source is None else self.f_hat_BChw  # the source's own, everywhere

    def add(self, ids_Bl: Tensor) -> None:
        """Add the token map of the next scale."""
        drawn_BChw = self.f_hat_BChw + self.quantizer.residual(ids_Bl, self.scale)
        if self.source is None or self.kept_BChw is None:
            self.f_hat_BChw = drawn_BChw
        else:
            o = self.quantizer.pyramid.offsets
            kept_Bl = self.source.ids_BL[:, o[self.scale] : o[self.scale + 1]]
            self.kept_BChw = self.kept_BChw + self.quantizer.residual(kept_Bl, self.scale)
            self.f_hat_BChw = torch.where(self.source.drawn_Bhw[:, None], drawn_BChw, self.kept_BChw)
        self.scale += 1

    def extend(self, ids_BL: Tensor) -> Tensor:
        """Add token maps of whole scales. Returns the inputs of the scales after each, float [B, l, C]."""
        inputs = [self.f_hat_BChw.new_zeros(len(ids_BL), 0, self.quantizer.channels)]
        for ids_Bl in self.quantizer.split(ids_BL):
            self.add(ids_Bl)
            if self.scale < self.quantizer.pyramid.num_scales:
                inputs.append(self.next_input())
        return torch.cat(inputs, dim=1)

    def next_input(self) -> Tensor:
        """The transformer's input of the next scale: float [B, l, C]."""
        return self.quantizer.next_input(self.f_hat_BChw, self.scale)
