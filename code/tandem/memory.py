"""Errors that mean that a device has no memory left."""

from __future__ import annotations

import torch

# What comes as other errors than torch's own: from its allocator on the CPU, from cuBLAS, cuDNN (which finds no kernel
# whose workspace fits), CUDA itself and Triton
MESSAGES = (
    "DefaultCPUAllocator",
    "ALLOC_FAILED",
    "nable to find an engine to execute this computation",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at once could have gone well."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
