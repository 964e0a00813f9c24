"""Fused kernels against the plain lines that define them, run by Triton's interpreter on a CPU (TRITON_INTERPRET=1).

The interpreter truncates to bfloat16 where a card rounds, which the allowed error of two roundings covers.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "kernels are interpreted where TRITON_INTERPRET=1 is set before torch is imported", allow_module_level=True
    )

import torch
from triton.runtime import interpreter

from support.tiny_models import PATCH_NUMS, tiny_var, tiny_vqvae
from tandem import fused, fused_fp8, fused_vqvae, fusing
from tandem.assembly import Preparation
from tandem.collaborative import draft, refine
from tandem.config import SamplingConfig
from tandem.errors import TandemWarning
from tandem.fp8 import FP8, Fp8Rows, quantise
from tandem.sampling import uniforms
from tandem.vqvae import Upsample, Vqvae

CPU = torch.device("cpu")
NUM_TOKENS = sum(n * n for n in PATCH_NUMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [3, 16])
def test_kernels_of_blocks_and_head_agree_with_their_plain_lines(dtype, heads):
    fusing.check_blocks(heads, 64, dtype, CPU)


@pytest.fixture(autouse=True)
def fp8_as_on_a_card(monkeypatch):
    """Triton 3.7's interpreter loses the carry when it rounds to FP8 (127.9 becomes 64); torch rounds as a card."""
    plain = interpreter._convert_float

    def convert(values, given, wanted, rounding):
        if wanted.name != "fp8e4nv":
            return plain(values, given, wanted, rounding)
        assert given.name == "fp32"
        return torch.from_numpy(values.copy()).to(FP8).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [3, 16, 36])
def test_rows_in_fp8_are_the_nearest_to_the_plain_lines(dtype, heads):
    fusing.check_fp8(heads, 64, dtype, CPU)


@pytest.mark.parametrize(("rows", "tokens", "heads"), [(1, 1, 36), (2, 127, 5), (1, 256, 16)])
def test_rows_in_fp8_of_odd_lengths_and_widths(rows, tokens, heads):
    torch.manual_seed(tokens)
    x, branch = torch.randn(rows, tokens, 64 * heads), torch.randn(rows, tokens, 64 * heads)
    gate, scale, shift = torch.randn(3, rows, 64 * heads)
    x[0, 0] = shift[0] = 0.0  # a row of nothing, in which one value stands out
    branch[0, 0], shift[0, 3] = 0.0, 1e-3
    found_x, found = fused.norm_modulated(x, branch, gate, scale, shift, in_fp8=True)
    expected_x, expected = fused.norm_modulated_plain(x, branch, gate, scale, shift)
    torch.testing.assert_close(found_x, expected_x, rtol=1e-5, atol=1e-5)
    fusing.check_rounding("norm", found, expected)
    out = torch.randn(rows, tokens, 2, heads, 64).select(2, 1).transpose(1, 2)  # with gaps between tokens
    fusing.check_rounding("heads", fused_fp8.merged_heads(out), fused_fp8.merged_heads_plain(out))
    hidden = 3 * torch.randn(min(tokens, 40), 256 * heads)
    fusing.check_rounding("GELU", fused_fp8.activated(hidden), fused_fp8.activated_plain(hidden))


def test_rows_in_fp8_that_are_not_the_nearest_are_found():
    wanted = torch.randn(8, 64)
    rows = quantise(wanted)
    fusing.check_rounding("norm", rows, wanted)
    with pytest.raises(ValueError, match="kernel norm in FP8: expected the nearest values"):
        fusing.check_rounding("norm", Fp8Rows(rows.values.view(torch.uint8).add(1).view(FP8), rows.scale), wanted)
    with pytest.raises(ValueError, match="kernel norm in FP8: expected values within"):
        fusing.check_rounding("norm", Fp8Rows(rows.values, 1.01 * rows.scale), wanted)


@pytest.mark.parametrize(("tokens", "wanted"), [(1, 1), (127, 3)])
def test_odd_lengths_and_widths(tokens, wanted):
    torch.manual_seed(tokens)
    rows, heads = 1, 5
    x, branch, modulation = torch.randn(rows, tokens, 320), torch.randn(rows, tokens, 320), torch.randn(rows, 6, 320)
    given = (branch, modulation[:, 0], modulation[:, 2], modulation[:, 4])
    for found, expected in zip(fused.norm_modulated(x, *given), fused.norm_modulated_plain(x, *given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    qkv, scale = torch.randn(rows, tokens, 3 * 320), torch.rand(heads)
    found_kv, expected_kv = (torch.zeros(2, rows, heads, tokens + 2, 64) for _ in range(2))
    found = fused.place_heads(qkv, scale, wanted, found_kv, 2)
    torch.testing.assert_close(found, fused.place_heads_plain(qkv, scale, wanted, expected_kv, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_kv, expected_kv, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "fp8"), [("linear", False), ("0,0,0,0", False), ("0,0,0,0", True), ("2,0,2,0", False)]
)
def test_a_collaborative_decode_gives_the_ids_of_the_plain_one(schedule, fp8, monkeypatch):
    monkeypatch.setattr("tandem.linear.LEAST_ROWS", 8)  # two images at their last two scales
    sampling, labels = SamplingConfig(2.0, 20, 0.95, cfg_schedule=schedule), torch.tensor([1, 3])
    noise = uniforms(3, np.arange(2), NUM_TOKENS)
    ids = []
    for is_fused in (False, True):
        drafter, refiner, quantizer = tiny_var(2, seed=1), tiny_var(2, seed=2), tiny_vqvae().quantize
        for layer in [layer for var in (drafter, refiner) for block in var.layers for layer in block.products if fp8]:
            layer.add_fp8()
        if is_fused:
            drafter.fused, refiner.fused = fused.FusedVar(drafter), fused.FusedVar(refiner)
            quantizer.fused = fused_vqvae.FusedQuantizer(quantizer)
        with torch.inference_mode():
            prefix = draft(drafter, quantizer, labels, noise, 2, sampling)
            ids.append(refine(refiner, quantizer, labels, noise, prefix, sampling))
    assert torch.equal(*ids)


def prepared_vqvae() -> Vqvae:
    vqvae = tiny_vqvae()
    for module in vqvae.modules():
        if isinstance(module, Upsample):
            module.fold()
    return vqvae


def test_fused_vqvae_decode_gives_the_pixels_of_the_plain_one(monkeypatch):
    monkeypatch.setattr(fused_vqvae, "LEAST_TILE", 16)  # several tiles a map, the last of them short
    vqvae = prepared_vqvae()
    ids = torch.randint(64, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        f_hat, inputs = vqvae.quantize.unroll(ids)
        plain = vqvae.decode(f_hat)
        vqvae.fused, vqvae.quantize.fused = (
            fused_vqvae.FusedDecoder(vqvae.decoder),
            fused_vqvae.FusedQuantizer(vqvae.quantize),
        )
        for found, expected in zip(vqvae.quantize.unroll(ids), (f_hat, inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vqvae.decode(f_hat), plain, rtol=1e-5, atol=1e-5)


def test_a_large_mean_does_not_hurt_the_measured_variance():
    x = 300 + torch.randn(1, 32, 6, 5, generator=torch.Generator().manual_seed(0))
    norm = torch.nn.GroupNorm(32, 32, eps=1e-6).requires_grad_(False)
    expected = torch.nn.functional.group_norm(x.double(), 32, eps=1e-6)
    found = fused_vqvae.normed(fused_vqvae.measure(x, torch.zeros(32), keep=False), norm, silu=False)
    assert (found - expected).abs().max() < 1e-3  # float32 has steps of 3e-5 at 300


def test_a_kernel_that_gives_other_values_is_not_used(monkeypatch):
    right = fused.place_heads_plain

    def wrong(qkv_RLX, head_scale_H, wanted, kv_2RHLc, start):
        return 1.01 * right(qkv_RLX, head_scale_H, wanted, kv_2RHLc, start)

    monkeypatch.setattr(fused, "place_heads", wrong)
    var = tiny_var(2, seed=1)
    with pytest.warns(TandemWarning, match=r"^kernels: ValueError: kernel heads: expected .* going on with plain ones"):
        fusing.fuse_var(var)
    assert var.fused is None


def test_a_missing_triton_means_plain_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "tandem.fused", None)
    var = tiny_var(2, seed=1)
    with pytest.warns(TandemWarning, match=r"^kernels: .* going on with plain ones"):
        fusing.fuse_var(var)
    assert var.fused is None


def test_kernels_are_no_switch_of_a_command_and_plain_by_default():
    assert Preparation().kernels == "plain" and Preparation(kernels="auto").names == []
