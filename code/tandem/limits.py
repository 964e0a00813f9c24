"""How much of a batch is worked on at once, on a CPU and on other devices.

On a CPU what is in between two steps should stay in its cache, and below the 32 MiB from which glibc takes pages for
every tensor and gives them back; its matrix kernels are as fast with so few rows as with more. Elsewhere the parts
are large, and only bound what a batch takes beside weights and KV cache.
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
        tokens: of all rows that go through a layer together. None: all.
        hidden_bytes: of their hidden layer, the widest there is.
        scores: attention weights at once. None: a fused kernel keeps none.
        logits: tokens whose logits are there at once.
        map_bytes: bytes of the widest feature map of the images that are decoded together.
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
    """How many of `rows` rows of `tokens` tokens each go through a layer together: all groups but the last."""
    bound = limits(device)
    if bound.tokens is None or bound.hidden_bytes is None:
        return rows
    token_bytes = config.mlp_ratio * config.width * compute_dtype(dtype, effective_device(device)).itemsize
    most = max(1, min(bound.tokens, bound.hidden_bytes // token_bytes) // tokens)
    return -(-rows // -(-rows // most))  # groups alike


@contextmanager
def pretend(device: torch.device) -> Iterator[None]:
    """Inside, meta tensors are worked on as they would be on `device`."""
    token = _pretended.set(device)
    try:
        yield
    finally:
        _pretended.reset(token)
