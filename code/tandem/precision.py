"""float32 means float32: torch lets cuDNN round the inputs of convolutions to TF32 unless it is forbidden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Context manager: convolutions of float32 tensors are computed in float32 on every device."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
