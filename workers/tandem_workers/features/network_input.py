"""Arrays to tensors and back, and networks in TorchScript."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tandem.errors import CheckpointError, one_line

Constants = float | tuple[float, float, float]


def as_input(pixels: NDArray[Any], device: torch.device, mean: Constants, std: Constants) -> Tensor:
    """[B, H, W, 3], values 0 to 255 -> float32 [B, 3, H, W], (values - mean) / std, on the device."""
    x_BHW3 = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).float()
    mean_3, std_3 = (torch.tensor(value, device=device, dtype=torch.float32) for value in (mean, std))
    return x_BHW3.sub_(mean_3).div_(std_3).permute(0, 3, 1, 2).contiguous()


def as_array(values: Tensor) -> NDArray[np.float32]:
    """float32 [B, F] on the host."""
    return values.float().flatten(1).cpu().numpy()


def load_torchscript(path: Path, device: torch.device, extra: dict[str, Any] | None = None) -> torch.jit.ScriptModule:
    """A TorchScript file in evaluation mode; `extra` is filled as torch.jit.load does. CheckpointError for others."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch advises another format
            return torch.jit.load(str(path), map_location=device, _extra_files=extra).eval()
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a TorchScript file: {one_line(error)[:160]}") from None
