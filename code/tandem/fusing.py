"""Checks fused kernels before they are used: on random values of the model's sizes they must agree with plain torch.
After a mismatch, a missing compiler or any other failure the model stays plain, with a warning.

Shapes: R rows, L tokens, C width, H heads, c head size.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tandem.errors import FallbackWarning, one_line
from tandem.fp8 import LARGEST, Fp8Rows
from tandem.guidance import ScaleGuidance
from tandem.memory import is_out_of_memory
from tandem.precision import full_precision
from tandem.quantizer import Quantizer
from tandem.timing import timed
from tandem.var import Var
from tandem.vqvae import Vqvae

if TYPE_CHECKING:
    from tandem.fused_vqvae import FusedQuantizer

ROWS, TOKENS = 4, 7  # of the values that check a transformer's kernels
# Largest error of a value, relative to its size or 1: two roundings of the dtype
STEPS = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
PIXELS = 1e-4  # relative error of all pixels after some forty layers in float32


def fuse_var(var: Var) -> None:
    """Give a transformer fused kernels, if they pass the check."""

    def attempt() -> None:
        from tandem.fused import FusedVar

        sizes = var.config.heads, var.config.head_dim, var.dtype, var.pos_1LC.device
        check_blocks(*sizes)
        if var.layers[0].ffn.fc1.fp8_OI is not None:
            check_fp8(*sizes)
        var.fused = FusedVar(var)

    attempt_or_warn(attempt)


def fuse_vqvae(vqvae: Vqvae) -> None:
    """Give the quantizer and the VQVAE decoder fused kernels, each if they pass the check."""

    def attempt_quantizer() -> None:
        from tandem.fused_vqvae import FusedQuantizer

        fused = FusedQuantizer(vqvae.quantize)
        check_quantizer(vqvae.quantize, fused)
        vqvae.quantize.fused = fused

    def attempt_decoder() -> None:
        from tandem.fused_vqvae import FusedDecoder

        fused = FusedDecoder(vqvae.decoder)
        check_decoder(vqvae, fused)
        vqvae.fused = fused

    attempt_or_warn(attempt_quantizer)
    attempt_or_warn(attempt_decoder)


@timed("kernels")
def attempt_or_warn(attempt: Callable[[], None]) -> None:
    try:
        with torch.inference_mode(), full_precision():
            attempt()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        warnings.warn(f"kernels: {one_line(error)}; going on with plain ones", FallbackWarning, stacklevel=3)


def check_blocks(heads: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError unless the kernels of a transformer of this width agree with plain torch."""
    from tandem import fused

    width, generator = heads * size, torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x_RLC, branch_RLC, modulation_R6C = random(ROWS, TOKENS, width), random(ROWS, TOKENS, width), random(ROWS, 6, width)
    gate, _, scale, _, shift, _ = modulation_R6C.unbind(1)
    for given in ((None, None, scale, shift), (branch_RLC, gate, scale, shift), (branch_RLC, gate, None, None)):
        found_x, found_h = fused.norm_modulated(x_RLC, *given)
        assert isinstance(found_h, Tensor)
        wanted_x, _ = fused.norm_modulated_plain(*upcast(x_RLC, *given[:2], None, None))
        _, wanted_h = fused.norm_modulated_plain(*upcast(found_x, None, None, *given[2:]))
        check_close("norm", dtype, (found_x, found_h), (wanted_x, wanted_h))
    qkv_RLX = random(ROWS, TOKENS, 3 * width)
    head_scale_H = 5 * torch.rand(heads, generator=generator, device=device)
    found_kv, wanted_kv = (
        torch.zeros(2, ROWS, heads, TOKENS + 3, size, dtype=d, device=device) for d in (dtype, torch.float32)
    )
    found_q = fused.place_heads(qkv_RLX, head_scale_H, TOKENS - 2, found_kv, 1)
    wanted_q = fused.place_heads_plain(qkv_RLX.float(), head_scale_H, TOKENS - 2, wanted_kv, 1)
    check_close("heads", dtype, (found_q, found_kv), (wanted_q, wanted_kv))
    modulation_R2C, images = random(ROWS, 2, width), ROWS // 2
    strength_B, partner_B = torch.rand(images, generator=generator, device=device), torch.arange(images, device=device)
    for guidance in (None, ScaleGuidance(strength_B, ROWS - 1 - partner_B)):
        some = slice(1, images)
        wanted = fused.head_inputs_plain(x_RLC.float(), modulation_R2C.float(), guidance, some)
        check_close("head", dtype, (fused.head_inputs(x_RLC, modulation_R2C, guidance, some),), (wanted,))


def check_fp8(heads: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError unless the kernels that write rows in FP8 round to the nearest value."""
    from tandem import fused, fused_fp8

    width, generator = heads * size, torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x_RLC, scale_RC, shift_RC = random(ROWS, TOKENS, width), random(ROWS, width), random(ROWS, width)
    _, found = fused.norm_modulated(x_RLC, None, None, scale_RC, shift_RC, in_fp8=True)
    _, wanted = fused.norm_modulated_plain(x_RLC.float(), None, None, scale_RC.float(), shift_RC.float())
    check_rounding("norm", found, wanted)
    out_RHlc = random(ROWS, heads, TOKENS, size)
    for each in (out_RHlc, random(ROWS, TOKENS, heads, size).transpose(1, 2)):
        check_rounding("heads", fused_fp8.merged_heads(each), fused_fp8.merged_heads_plain(each))
    hidden_NX = random(ROWS, 4 * width)
    check_rounding("GELU", fused_fp8.activated(hidden_NX), fused_fp8.activated_plain(hidden_NX))


def check_rounding(what: str, found: Tensor | Fp8Rows, wanted: Tensor) -> None:
    """Raise ValueError unless rows in FP8 are nearest to float32 values: within half a step of a mantissa of 3 bits."""
    assert isinstance(found, Fp8Rows)
    wanted = wanted.reshape(found.values.shape)
    largest = wanted.abs().amax(dim=1, keepdim=True)
    check_close(f"{what} in FP8", torch.float32, (found.scale * LARGEST / largest,), (torch.ones_like(largest),))
    allowed = (2**-4 * wanted.abs()).maximum(2**-10 * found.scale) + 1e-5 * largest
    if not (away := float(((found.float() - wanted).abs() / allowed).max())) <= 1:
        raise ValueError(f"kernel {what} in FP8: expected the nearest values, got errors of {away:.2f} half steps")


def check_quantizer(plain: Quantizer, fused: FusedQuantizer) -> None:
    """Raise ValueError unless the residuals of every scale agree with plain torch."""
    for scale, size in enumerate(plain.pyramid.patch_nums):
        ids_Bl = torch.arange(2 * size * size, device=plain.embedding.weight.device).view(2, -1) % plain.vocab_size
        check_close("residual", torch.float32, (fused.residual(ids_Bl, scale),), (plain.residual(ids_Bl, scale),))


def check_decoder(vqvae: Vqvae, fused: Callable[[Tensor], Tensor]) -> None:
    """Raise ValueError unless the fused decoder comes about as near to float32 as the plain one."""
    weight = vqvae.post_quant_conv.weight
    generator = torch.Generator(weight.device).manual_seed(0)
    side, channels = vqvae.config.patch_nums[-1], vqvae.config.latent_channels
    z_BChw = torch.randn(1, channels, side, side, generator=generator, device=weight.device).to(weight.dtype)
    wanted = copy.deepcopy(vqvae.decoder).float()(z_BChw.float())
    errors = [float((decoder(z_BChw).float() - wanted).norm() / wanted.norm()) for decoder in (fused, vqvae.decoder)]
    allowed = max(PIXELS, 1.5 * errors[1])
    if not errors[0] <= allowed:
        raise ValueError(f"expected pixels within {allowed:.1e} of those in float32, got {errors[0]:.1e}")


def upcast(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.float() for t in tensors]


def check_close(what: str, dtype: torch.dtype, found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """Raise ValueError for values that are further apart than rounding explains."""
    for one, other in zip(found, wanted, strict=True):
        away = float(((one.float() - other) / other.abs().clamp_min(1)).abs().max())
        if not away <= STEPS[dtype]:
            raise ValueError(
                f"kernel {what}: expected values within {STEPS[dtype]:.1e} of the plain ones, got {away:.1e}"
            )
