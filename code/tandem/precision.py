"""Precision of float32: torch lets cuDNN round the inputs of convolutions to TF32 unless it is forbidden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is in that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextmanager
def full_precision() -> Iterator[None]:
    """Context manager: convolutions of float32 tensors are computed in float32 on every device."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
