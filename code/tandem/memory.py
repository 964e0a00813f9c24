"""Recognises out-of-memory errors."""

from __future__ import annotations

import torch

# Messages of errors other than torch's OutOfMemoryError: of its CPU allocator, cuBLAS, cuDNN (which finds no kernel
# whose workspace fits), CUDA itself and Triton
MESSAGES = (
    "DefaultCPUAllocator",
    "ALLOC_FAILED",
    "nable to find an engine to execute this computation",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, so that a smaller batch might fit."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
