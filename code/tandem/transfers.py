"""Copies to a device for which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(host: Tensor, device: torch.device | None) -> Tensor:
    """Copy a host tensor to a device. To CUDA it goes from pinned memory, queued after earlier work; from other memory
    the host would wait for that work."""
    if device is None or device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
