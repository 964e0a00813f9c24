"""Products in FP8 (float8_e4m3): a scale per row of activations and per row (output) of weights, sums in float32.
GPUs support them from compute capability 8.9 on; a CPU computes the same values in float32, to measure quality.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.errors import InputError, one_line
from tandem.limits import effective_device
from tandem.memory import is_out_of_memory

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # value in FP8
SMALLEST = 1e-12  # lower bound of the largest value of a row, so that rows of zeros can be scaled
# Products of fewer rows stay in the model's dtype: at 128 rows FP8 took 1.2 times as long on an H100 (docs/GPU.md)
LEAST_ROWS = 1024
LEAST_CAPABILITY = 8, 9
CHECKED = 1024, 512, 256  # rows, inputs and outputs of the product that checks a device


class Fp8Rows(NamedTuple):
    """Rows in FP8: values [N, I], to be multiplied by float32 scales [N, 1]."""

    values: Tensor
    scale: Tensor

    def float(self) -> Tensor:
        return self.values.float() * self.scale


def quantise(x_NI: Tensor) -> Fp8Rows:
    """Scale each row by its largest value, and round to the nearest FP8 value."""
    x_NI = x_NI.float()
    scale_N1 = x_NI.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST) / LARGEST
    return Fp8Rows((x_NI / scale_N1).to(FP8), scale_N1)


def product(x_NI: Fp8Rows, weight_OI: Fp8Rows, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x W + bias in `dtype`: [N, O]."""
    scale_1O = weight_OI.scale.t()
    if effective_device(x_NI.values.device).type == "cpu":
        sums_NO = F.linear(x_NI.values.float(), weight_OI.values.float()) * x_NI.scale * scale_1O
        return (sums_NO if bias_O is None else sums_NO + bias_O).to(dtype)
    return torch._scaled_mm(
        x_NI.values, weight_OI.values.t(), scale_a=x_NI.scale, scale_b=scale_1O, bias=bias_O, out_dtype=dtype
    )


def check_capability(device: torch.device) -> None:
    """Raise InputError for a GPU without FP8."""
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        expected, got = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, found))
        name = torch.cuda.get_device_name(device)
        raise InputError(f"fp8: expected a GPU of compute capability {expected} or more, got {got} ({name})")


def check_device(device: torch.device) -> None:
    """Raise InputError for a GPU that does not multiply in FP8, or does so wrongly."""
    check_capability(device)
    try:
        check_product(device)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"fp8: expected correct products in FP8 on this GPU, got {one_line(error)}") from error


def check_product(device: torch.device) -> None:
    """Raise ValueError unless a product of random values equals that in float32, up to rounding to bfloat16."""
    rows, inputs, outputs = CHECKED
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (quantise(torch.randn(n, inputs, generator=generator, device=device)) for n in (rows, outputs))
    bias_O = torch.randn(outputs, generator=generator, device=device).to(torch.bfloat16)
    wanted = F.linear(x.float(), weight.float(), bias_O.float())
    away = float((product(x, weight, bias_O, torch.bfloat16).float() - wanted).norm() / wanted.norm())
    if not away <= 2**-7:
        raise ValueError(f"a relative error of {away:.1e}")
