"""Memory of a piece of work: its peak, and giving it back."""

from __future__ import annotations

import gc
from pathlib import Path

import torch


def free_memory(device: torch.device) -> None:
    """Give back what no tensor holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_resident(device: torch.device) -> None:
    """Reset the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(device: torch.device, in_graphs: bool = False) -> int:
    """Peak memory since `reset_resident`: allocated on the GPU, or resident in this process. The memory of CUDA graphs
    counts as free between runs, so with graphs it is the memory reserved by torch."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) if in_graphs else torch.cuda.max_memory_allocated(device)
    return status_bytes("VmHWM")


def anonymous_bytes() -> int:
    """Anonymous host memory of this process, without mapped files."""
    return status_bytes("RssAnon")


def status_bytes(name: str) -> int:
    """A value of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
