"""Where the time goes from the start of the command to the first committed shard."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from workers.records import Span


class StartUp:
    """Moments of a run. `began` is the start of this process, `entered` when the job was checked."""

    def __init__(self) -> None:
        self.began, self.entered = process_began(), time.time()
        self.joined = self.entered

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the command."""
        return time.time() - self.began

    def join(self) -> None:
        """The cluster is there."""
        self.joined = time.time()

    def summary(self, spans: Sequence[Span]) -> dict[str, object]:
        """`started_at` in seconds since 1970, and the seconds of each part; nothing where no shard was made.

        driver: imports, models and rows checked; cluster: joined or started; replicas: placed and loaded until one
        had work; first_shard: from there to the first commit.
        """
        stored = [span.end_s for span in spans if span.stage == "store"]
        if not stored:
            return {}
        worked = min(span.start_s for span in spans)
        parts = {
            "driver": self.entered - self.began,
            "cluster": self.joined - self.entered,
            "replicas": worked - self.joined,
            "first_shard": min(stored) - worked,
        }
        rounded = {name: round(seconds, 2) for name, seconds in parts.items()}
        return {"started_at": round(self.began, 3), "start_up_s": rounded}


def process_began() -> float:
    """Start of this process in seconds since 1970; now, where the system has no /proc."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        age = 0.0
    return time.time() - age
