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


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        tokens: of all rows that go through a layer together. None: all.
        scores: attention weights at once. None: a fused kernel keeps none.
        logits: tokens whose logits are there at once.
        map_bytes: bytes of the widest feature map of the images that are decoded together.
    """

    tokens: int | None
    scores: int | None
    logits: int
    map_bytes: int

    def rows(self, tokens: int, of: int) -> int:
        """Rows of `tokens` tokens each that go through a layer together, of `of` rows."""
        return of if self.tokens is None else max(1, min(of, self.tokens // tokens))


CPU = Limits(tokens=2048, scores=2**21, logits=1024, map_bytes=2**25)
GPU = Limits(tokens=None, scores=None, logits=8192, map_bytes=2**29)
_pretended: ContextVar[Limits | None] = ContextVar("limits", default=None)


def limits(device: torch.device) -> Limits:
    """Those of a device; on meta tensors, those of the device that is pretended."""
    if device.type == "meta":
        return _pretended.get() or GPU
    return CPU if device.type == "cpu" else GPU


@contextmanager
def pretend(device: torch.device) -> Iterator[None]:
    """Inside, meta tensors are worked on as they would be on `device`."""
    token = _pretended.set(limits(device))
    try:
        yield
    finally:
        _pretended.reset(token)
