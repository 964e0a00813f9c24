"""How fast a run makes images: one definition for its progress, its closing table and its JSON line."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem_workers.stages.ray_data import Span


@dataclass
class Throughput:
    """Counts the images that a run commits. Times are seconds since the epoch.

    Attributes:
        images: committed by this run, without those of the run that it resumes.
        first_start: the first start of any stage on any shard; the start of the run for work without spans.
        first_commit, last_commit: times of the shards so far.
    """

    began: float = field(default_factory=time.time)
    images: int = 0
    shards: int = 0
    first_start: float = math.inf
    first_commit: float = math.inf
    last_commit: float = 0.0

    def add(self, num_images: int, spans: Sequence[Span] = ()) -> None:
        """Count a committed shard, with its spans."""
        end = max((span.end_s for span in spans), default=time.time())
        self.images += num_images
        self.shards += 1
        self.first_start = min([self.first_start, *(span.start_s for span in spans or [Span("", "", self.began, end)])])
        self.first_commit, self.last_commit = min(self.first_commit, end), max(self.last_commit, end)

    @property
    def working_s(self) -> float:
        """Seconds from the first start of any stage to the last commit. Starting Ray and loading models come before."""
        return max(0.0, self.last_commit - self.first_start)

    @property
    def images_per_s(self) -> float:
        """Committed images over `working_s`, shown everywhere as images/s. 0 before the first commit."""
        return self.images / self.working_s if self.working_s else 0.0

    @property
    def steady_images_per_s(self) -> float:
        """Images a second from the first commit to the last, without the time to fill the pipeline. 0 for one shard."""
        lasted = self.last_commit - self.first_commit
        return self.images * (1 - 1 / self.shards) / lasted if self.shards > 1 and lasted > 0 else 0.0


def show_speed(images_per_s: float) -> str:
    """The speed as text, the same in every display; empty if there is none yet."""
    return f"{images_per_s:.2f} images/s" if images_per_s else ""
