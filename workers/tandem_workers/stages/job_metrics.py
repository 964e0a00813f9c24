"""Metrics of a job for Prometheus, counted in the processes that make its shards. Ray exports them."""

from __future__ import annotations

from functools import cache

from ray.util.metrics import Counter, Histogram


@cache
def stage_metrics() -> StageMetrics:
    """The metrics of this process."""
    return StageMetrics()


class StageMetrics:
    """`ray_tandem_images`, `_busy_seconds` and `_shard_seconds`, by stage."""

    def __init__(self) -> None:
        tags = ("stage",)
        self.images = Counter("tandem_images", "Images that a stage has finished", tags)
        self.busy = Counter("tandem_busy_seconds", "Seconds of work of a stage", tags)
        bounds = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
        self.shard = Histogram("tandem_shard_seconds", "Seconds of one shard in a stage", bounds, tags)

    def observe(self, stage: str, seconds: float, images: int) -> None:
        """Count the work of a stage on one shard."""
        seconds = max(1e-9, seconds)
        self.images.inc(images, {"stage": stage})
        self.busy.inc(seconds, {"stage": stage})
        self.shard.observe(seconds, {"stage": stage})
