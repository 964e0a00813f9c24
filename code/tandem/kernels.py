"""Dtypes that this CPU multiplies natively. For others torch has its own code, which is correct but many times slower
than converting to float32, or oneDNN's int8 code without VNNI, which overflows."""

from __future__ import annotations

import torch
from torch import Tensor


def ask_onednn(question: str) -> bool:
    """Whether oneDNN supports a feature on this CPU; false if torch was built without oneDNN."""
    return torch.backends.mkldnn.is_available() and bool(getattr(torch.ops.mkldnn, question)())


SLOW = {
    dtype
    for dtype, question in (
        (torch.bfloat16, "_is_mkldnn_bf16_supported"),
        (torch.float16, "_is_mkldnn_fp16_supported"),
    )
    if not ask_onednn(question)
}
# GELU fused into oneDNN's products costs a few per cent with AVX512; with AVX2 several times torch's separate GELU
FUSED_GELU = torch.cpu._is_avx512_supported()
INT8_SUMS = torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


def power_of_two(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(0, number - 1).bit_length()


def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has fast kernels for matrices of a float dtype."""
    return dtype not in SLOW


def multiplies_int8() -> bool:
    """Whether this CPU has the instructions (VNNI) that sum products of int8 in int32."""
    return INT8_SUMS


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Dtype in which a device multiplies matrices of `dtype`: float32 on a CPU without support, else `dtype`."""
    return torch.float32 if device.type == "cpu" and not multiplies(dtype) else dtype


def to_compute(tensor: Tensor) -> Tensor:
    """A tensor in the dtype in which its device multiplies."""
    return tensor.to(compute_dtype(tensor.dtype, tensor.device))
