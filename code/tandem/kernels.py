"""What this CPU multiplies by itself. For the rest there is torch's own code, which is correct and many times slower
than going through float32, or oneDNN's for int8 without VNNI, which overflows."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has fast kernels for matrices of a float dtype."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


@cache
def multiplies_int8() -> bool:
    """Whether this CPU has the instructions (VNNI) that sum products of int8 in int32."""
    return bool(torch.cpu._is_vnni_supported())


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In which matrices of a dtype are multiplied on a device: float32 on a CPU that lacks it, else as they are."""
    return torch.float32 if device.type == "cpu" and not multiplies(dtype) else dtype


def to_compute(tensor: Tensor) -> Tensor:
    """A tensor in the dtype in which its device multiplies."""
    return tensor.to(compute_dtype(tensor.dtype, tensor.device))
