"""Products in FP8: what they round, when they are taken, what they cost in memory, and where they are refused."""

from __future__ import annotations

import pytest
import torch

from support.tiny_models import tiny_var
from tandem import fp8
from tandem.assembly import Preparation, assemble_var
from tandem.config import VAR_PRESETS, SamplingConfig
from tandem.counting.costs import empty_var, tensor_bytes, var_bytes
from tandem.errors import InputError, TandemWarning
from tandem.fp8 import FP8, LARGEST, LEAST_ROWS, Fp8Rows, product, quantise
from tandem.linear import Linear
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.options.spec import parse
from tandem_jobs.run.decode_choices import check_gpus_here, choose_settings
from tandem_workers.dataset.identity import decoding_identity

CPU, CUDA, BF16 = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
OPTIONS = ("--classes", "all", "--images", "4", "--out", "none")


def test_each_value_becomes_the_nearest_one_that_there_is():
    torch.manual_seed(0)
    x = torch.randn(20, 33) * torch.logspace(-6, 3, 20)[:, None]
    x[3], x[4, 1:] = 0.0, 0.0
    values, scale = quantise(x)
    every = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    every = every[every.isfinite()]
    nearest = (x[:, :, None] / scale[:, :, None] - every).abs().amin(dim=2)
    torch.testing.assert_close((values.float() - x / scale).abs(), nearest, rtol=0, atol=1e-5)
    assert (values.float().abs().amax(dim=1) == LARGEST).sum() == 19 and not values[3].float().any()


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_on_a_cpu_is_that_of_torch(dtype, has_bias):
    torch.manual_seed(0)
    x, weight = quantise(torch.randn(40, 64)), quantise(torch.randn(48, 64))
    bias = torch.randn(48).to(dtype) if has_bias else None
    by_torch = torch._scaled_mm(
        x.values, weight.values.t(), scale_a=x.scale, scale_b=weight.scale.t(), bias=bias, out_dtype=dtype
    )
    near = {"rtol": 2**-7, "atol": 0.1} if dtype == BF16 else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(product(x, weight, bias, dtype), by_torch, **near)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_few_rows_stay_in_the_dtype_and_many_are_near(gelu, dtype):
    torch.manual_seed(0)
    plain = Linear(128, 192, gelu=gelu).requires_grad_(False).to(dtype)
    many, few = torch.randn(2, LEAST_ROWS // 2, 128).to(dtype), torch.randn(1, LEAST_ROWS - 1, 128).to(dtype)
    with torch.inference_mode():
        expected = [plain(many), plain(few)]
        plain.add_fp8()
        plain.pack()
        near, same = plain(many), plain(few)
    near_by = {"rtol": 2**-6, "atol": 0.01} if dtype == BF16 else {"rtol": 1e-5, "atol": 1e-5}  # packed or not
    torch.testing.assert_close(same, expected[1], **near_by)
    away = (near.float() - expected[0].float()).norm() / expected[0].float().norm()
    assert near.dtype == dtype and 0.005 < away < 0.06


def test_a_device_is_asked_for_a_product_before_it_is_used(monkeypatch):
    fp8.check_product(CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(
        InputError, match=r"^fp8: expected a GPU of compute capability 8\.9 or more, got 8\.0 \(NVIDIA A100"
    ):
        fp8.check_device(CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    fp8.check_device(CPU)
    monkeypatch.setattr(fp8, "product", lambda *given: 1.02 * product(*given))
    with pytest.raises(InputError, match=r"^fp8: expected correct .*, got ValueError: a relative error of 2\.\de-02$"):
        fp8.check_device(CPU)


def test_a_model_in_fp8_is_near_its_plain_one_and_a_cpu_says_that_it_gains_nothing(monkeypatch):
    monkeypatch.setattr("tandem.linear.LEAST_ROWS", 16)
    var = tiny_var(3, seed=0)
    values = dict(var.named_parameters())
    with pytest.warns(TandemWarning, match="^fp8: a CPU computes the same values in float32"):
        ready = assemble_var(var.config, values.__getitem__, torch.float32, CPU, Preparation(fp8=True))
    assert all(layer.fp8_OI is not None for block in ready.layers for layer in block.products)
    others = {name: module for name, module in ready.named_modules() if isinstance(module, Linear)}
    assert all(module.fp8_OI is None for name, module in others.items() if "ada_lin" in name or "blocks" not in name)
    labels, inputs = torch.arange(4), torch.randn(4, 29, var.config.latent_channels)
    with torch.inference_mode():
        expected, found = var(labels, inputs), ready(labels, inputs)
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("name", ["d16", "d30"])
def test_weights_in_fp8_are_counted_beside_those_in_bfloat16(name):
    config = VAR_PRESETS[name]
    plain, quantised = (empty_var(config, BF16, Preparation(fp8=fp8)) for fp8 in (False, True))
    weights, scales = 12 * config.depth * config.width**2, 9 * config.depth * config.width
    assert tensor_bytes(quantised) - tensor_bytes(plain) == weights + 4 * scales


def test_a_decode_in_fp8_is_counted_without_a_card():
    sampling = SamplingConfig()
    plain, quantised = (
        var_bytes(VAR_PRESETS["d16"], 8, 8, 10, BF16, CUDA, Preparation(fp8=fp8), sampling) for fp8 in (False, True)
    )
    assert quantised.cache == plain.cache and quantised.weights > plain.weights
    assert plain.activations <= quantised.activations < 3 * plain.activations


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_on_a_gpu_the_dtype_beside_fp8_is_bfloat16(dtype):
    spec = parse(GenerateSpec, [*OPTIONS, "--fp8", "--dtype", dtype], "tandem generate")
    with pytest.raises(InputError, match=f"^--fp8: expected dtype bfloat16 on a GPU, got {dtype}$"):
        choose_settings(spec, 0, 2, SamplingConfig(), 4, on_real_gpus=True)
    assert choose_settings(spec, 0, 2, SamplingConfig(), 4, on_real_gpus=False).preparation.fp8


def test_a_card_of_this_machine_without_fp8_is_refused_before_anything_starts(monkeypatch):
    spec = parse(GenerateSpec, [*OPTIONS, "--fp8"], "tandem generate")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("tandem_jobs.run.decode_choices.count_real_gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(InputError, match=r"^--fp8: expected a GPU of compute capability 8\.9 or more, got 8\.0"):
        check_gpus_here(spec, None, on_cpus=False)
    check_gpus_here(spec, None, on_cpus=True)


def test_fp8_is_part_of_a_job_and_stands_without_int8():
    plain, asked = (
        decoding_identity(
            choose_settings(parse(GenerateSpec, [*OPTIONS, *more], ""), 0, 2, SamplingConfig(), 4, on_real_gpus=False)
        )
        for more in ((), ("--fp8",))
    )
    assert asked == plain | {"how": {"fp8": True}}
    with pytest.raises(InputError, match=r"^expected --int8 or --fp8, got both$"):
        parse(GenerateSpec, [*OPTIONS, "--fp8", "--int8"], "tandem generate")


def test_rows_are_what_values_times_scales_are():
    rows = Fp8Rows(torch.tensor([[2.0, -0.5]]).to(FP8), torch.tensor([[3.0]]))
    assert rows.float().tolist() == [[6.0, -1.5]]
