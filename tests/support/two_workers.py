"""Two processes with a gloo process group, in which functions of tests run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_S = 60


def run_in_two(function: Callable[[int], Any]) -> list[Any]:
    """Results of a function of the rank, which travel as files; it has to be importable."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (function, folder), nprocs=2)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(2)]


def _work(rank: int, function: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT_S))
    torch.save(function(rank), Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()
