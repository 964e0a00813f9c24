"""Limits on how much of a batch is computed at once, on a CPU and on other devices.

On a CPU intermediate tensors should stay in its cache, and below 32 MiB, where glibc maps and unmaps pages for every
tensor; its matrix kernels are as fast with few rows as with many. On other devices the groups are large, and only bound
the memory that a batch needs in addition to weights and KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from tandem.config import VarConfig
from tandem.kernels import compute_dtype


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        tokens: most tokens of all rows that go through a layer together. None: all.
        hidden_bytes: most bytes of their hidden layer, the widest tensor.
        scores: most attention weights at once. None: the fused kernel stores none.
        logits: most tokens whose logits are in memory at once.
        map_bytes: most bytes of the widest feature map of images that are decoded together.
    """

    tokens: int | None
    hidden_bytes: int | None
    scores: int | None
    logits: int
    map_bytes: int


CPU = Limits(tokens=2048, hidden_bytes=31 * 2**20, scores=2**21, logits=1024, map_bytes=2**25)
GPU = Limits(tokens=None, hidden_bytes=None, scores=None, logits=8192, map_bytes=2**29)
_pretended: ContextVar[torch.device | None] = ContextVar("device", default=None)


def limits(device: torch.device) -> Limits:
    """The limits of a device; for meta tensors, those of the device that they stand for."""
    return CPU if effective_device(device).type == "cpu" else GPU


def effective_device(device: torch.device) -> torch.device:
    """The device itself; for meta tensors, the device that they stand for."""
    return (_pretended.get() or device) if device.type == "meta" else device


def rows_together(config: VarConfig, rows: int, tokens: int, dtype: torch.dtype, device: torch.device) -> int:
    """Group size in which `rows` rows of `tokens` tokens each go through a layer; the last group may be smaller."""
    bound = limits(device)
    if bound.tokens is None or bound.hidden_bytes is None:
        return rows
    token_bytes = config.mlp_ratio * config.width * compute_dtype(dtype, effective_device(device)).itemsize
    most = max(1, min(bound.tokens, bound.hidden_bytes // token_bytes) // tokens)
    return -(-rows // -(-rows // most))  # groups of equal size


@contextmanager
def pretend(device: torch.device) -> Iterator[None]:
    """Context manager: meta tensors are processed as if they were on `device`."""
    token = _pretended.set(device)
    try:
        yield
    finally:
        _pretended.reset(token)
