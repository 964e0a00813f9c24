"""Copies to a device behind which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(host: Tensor, device: torch.device | None) -> Tensor:
    """A tensor of host memory on a device. To CUDA it goes from pinned memory, after what was launched before; from
    other memory the host would first wait for all of that."""
    if device is None or device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
