"""Losses of the tokenizer, and replacement of unused codes in the codebook.

Shapes: B batch, L tokens, C channels, D latent channels, h w latent grid, N vectors, V codes.
Source: VAR (arXiv 2404.02905) and its published code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.quantizer import Quantizer
from tandem.vqvae import Vqvae

COMMITMENT = 0.25


def quantize_with_gradient(quantizer: Quantizer, f_BChw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents -> (f_hat with straight-through gradient, codebook + commitment loss, ids [B, L])."""
    target = f_BChw.detach()
    with torch.no_grad():
        ids_BL = quantizer.encode(target)
    f_hat, loss = torch.zeros_like(target), target.new_zeros(())
    for scale, ids_Bl in enumerate(quantizer.split(ids_BL)):
        f_hat = f_hat + quantizer.residual(ids_Bl, scale)
        loss = loss + COMMITMENT * F.mse_loss(f_hat.detach(), f_BChw) + F.mse_loss(f_hat, target)
    return f_BChw + (f_hat - f_BChw).detach(), loss / quantizer.pyramid.num_scales, ids_BL


def reconstruction_loss(recon_B3HW: Tensor, pixels_B3HW: Tensor) -> Tensor:
    """0.3 L1 + 4 L2: mostly what PSNR measures, with some weight on small errors."""
    error = recon_B3HW - pixels_B3HW
    return 0.3 * error.abs().mean() + 4 * error.square().mean()


def vqvae_loss(vqvae: Vqvae, pixels_B3HW: Tensor, quantize: bool) -> tuple[Tensor, Tensor | None]:
    """Loss of a batch and its ids; without `quantize`, as in the first steps, the latents stay continuous."""
    f_BChw = vqvae.latents(pixels_B3HW)
    if not quantize:
        return reconstruction_loss(vqvae.decode_latents(f_BChw), pixels_B3HW), None
    f_hat_BChw, codebook_loss, ids_BL = quantize_with_gradient(vqvae.quantize, f_BChw)
    return reconstruction_loss(vqvae.decode_latents(f_hat_BChw), pixels_B3HW) + codebook_loss, ids_BL


@torch.no_grad()
def residual_vectors(quantizer: Quantizer, f_BChw: Tensor, generator: torch.Generator, count: int) -> Tensor:
    """`count` vectors [count, D] that the quantizer had to code, drawn evenly over the scales."""
    rest, vectors = f_BChw, []
    each = -(-count // quantizer.pyramid.num_scales)
    for scale, size in enumerate(quantizer.pyramid.patch_nums):
        pooled_NC = F.interpolate(rest, size=(size, size), mode="area").permute(0, 2, 3, 1).flatten(0, 2)
        vectors.append(pooled_NC[torch.randint(len(pooled_NC), (each,), generator=generator)])
        ids_Bl = quantizer.nearest_code(pooled_NC).view(len(rest), -1)
        rest = rest - quantizer.residual(ids_Bl, scale)
    stacked = torch.cat(vectors)
    return stacked[torch.randperm(len(stacked), generator=generator)[:count]]


@torch.no_grad()
def revive_codes(
    quantizer: Quantizer,
    optimizer: torch.optim.Optimizer,
    dead_V: Tensor,
    f_BChw: Tensor,
    generator: torch.Generator,
) -> int:
    """Replace unused codes by residuals of the batch; returns how many."""
    count = int(dead_V.sum())
    if count:
        weight = quantizer.embedding.weight
        fresh = residual_vectors(quantizer, f_BChw, generator, count)
        noise = torch.randn(fresh.shape, generator=generator).to(fresh.device)
        weight[dead_V] = fresh + 0.01 * fresh.std() * noise
        for value in optimizer.state.get(weight, {}).values():
            if value.shape == weight.shape:
                value[dead_V] = 0
    return count
