"""Learning rates over the steps of a run."""

from __future__ import annotations

import math
from typing import Literal, get_args

Schedule = Literal["cosine", "linear", "constant"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def learning_rate(
    step: int, total: int, peak: float, warmup: int, schedule: Schedule = "cosine", final: float = 0.01
) -> float:
    """Linear warm-up over `warmup` steps, then by the schedule down to `final` times the peak at step `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "constant":
        return peak
    falling = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return peak * (final + (1 - final) * falling)
