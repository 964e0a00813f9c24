"""The phases of a replica's start. Times are seconds since 1970."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

IMPORTED_S = time.time()  # actors import this module before torch and the models


def process_began() -> float:
    """Start of this process in seconds since 1970; the current time on systems without /proc."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        age = 0.0
    return time.time() - age


@dataclass(frozen=True)
class ReplicaStart:
    """The start of one replica, known after its first shard.

    Attributes:
        began_s: its process started.
        imported_s: its process had Ray and began to import our code.
        entered_s: our code and torch were imported; loading began.
        ready_s: models were loaded.
        seconds: by part, as `tandem.timing` has them; graphs are captured during the first shard.
    """

    pool: str
    replica: str
    entered_s: float
    ready_s: float
    began_s: float = field(default_factory=process_began)
    imported_s: float = IMPORTED_S
    seconds: dict[str, float] = field(default_factory=dict)

    def parts(self, since_s: float) -> dict[str, float]:
        """Seconds of each part after a moment, such as that when the cluster was joined."""
        began, imported = max(since_s, self.began_s), max(since_s, self.imported_s)
        loading = {name: seconds for name, seconds in self.seconds.items() if name != "graphs"}
        return {
            "placing": began - since_s,
            "process": max(0.0, imported - began),
            "imports": max(0.0, self.entered_s - imported),
            **loading,
            "other": max(0.0, self.ready_s - self.entered_s - sum(loading.values())),
            **{name: seconds for name, seconds in self.seconds.items() if name == "graphs"},
        }
