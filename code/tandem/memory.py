"""Errors that mean that a device has no memory left."""

from __future__ import annotations

import torch

# What torch raises as plain RuntimeErrors: from its allocator on the CPU, from cuBLAS, and from CUDA itself
MESSAGES = ("DefaultCPUAllocator", "ALLOC_FAILED", "CUDA error: out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at once could have gone well."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
