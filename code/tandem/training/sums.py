"""Sums that a training loop logs: means over rows or tokens, added over micro-batches, steps and workers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tandem.training.parallel import Workers

Sums = dict[str, tuple[Tensor, Tensor]]  # by name: numerator and denominator of a mean


class Totals:
    """Sums of steps, in Python's floats: [numerator, denominator] by name."""

    def __init__(self, values: Mapping[str, list[float]] | None = None) -> None:
        self.values: dict[str, list[float]] = {name: list(pair) for name, pair in (values or {}).items()}

    def add(self, name: str, numerator: float, denominator: float) -> None:
        pair = self.values.setdefault(name, [0.0, 0.0])
        pair[0] += numerator
        pair[1] += denominator

    def means(self) -> dict[str, float]:
        """Means of those with a denominator."""
        return {name: over / under for name, (over, under) in self.values.items() if under}


def summed(sums: Sums, workers: Workers, *numbers: float) -> tuple[Totals, list[float]]:
    """Sums and plain numbers of all workers, by one collective call. Every worker has the same names."""
    names = sorted(sums)
    values = [sums[name][i].detach().to(workers.device, torch.float64) for name in names for i in range(2)]
    plain = torch.tensor(numbers, dtype=torch.float64, device=workers.device)
    packed = torch.cat([torch.stack(values), plain]) if values else plain
    numbers_of_all = workers.sum(packed).tolist()
    totals = Totals()
    for i, name in enumerate(names):
        totals.add(name, numbers_of_all[2 * i], numbers_of_all[2 * i + 1])
    return totals, numbers_of_all[2 * len(names) :]


def merge(sums: Sums, more: Sums) -> None:
    """Add sums of another micro-batch, in place."""
    for name, (numerator, denominator) in more.items():
        pair = numerator.detach(), denominator.detach()
        sums[name] = (sums[name][0] + pair[0], sums[name][1] + pair[1]) if name in sums else pair
