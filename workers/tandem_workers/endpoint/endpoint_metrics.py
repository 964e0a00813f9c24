"""Metrics of the endpoint, exported to Prometheus by Ray: names begin with `ray_tandem_serve_`.

Ray Serve adds the tags deployment, replica and application.
"""

from __future__ import annotations

from ray.serve.metrics import Counter, Gauge, Histogram

from tandem_workers.endpoint.batching import BatchReport

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


class BatchMetrics:
    """Metrics of one drafter or refiner replica. Take means from the counters: Ray estimates the sums of histograms
    from bucket midpoints."""

    def __init__(self, stage: str) -> None:
        tags = ("stage",)
        self.tags = {"stage": stage}
        self.batches = Counter("tandem_serve_batches", "Batches of a stage", tags)
        self.rows = Counter("tandem_serve_rows", "Images in the batches of a stage", tags)
        self.padding = Counter("tandem_serve_padded_rows", "Padding rows in batches", tags)
        self.busy = Counter("tandem_serve_busy_seconds", "Seconds that a stage worked on batches", tags)
        self.waited = Counter("tandem_serve_waited_seconds", "Seconds that the oldest image of each batch waited", tags)
        self.batch_size = Histogram("tandem_serve_batch_size", "Images of a batch", SIZES, tags)
        self.batch_seconds = Histogram("tandem_serve_batch_seconds", "Seconds of a batch in a stage", SECONDS, tags)
        self.waiting = Gauge("tandem_serve_waiting_images", "Images that wait for a batch", tags)
        self.images = Counter("tandem_serve_images", "Images made")

    def observe(self, report: BatchReport, waiting: int) -> None:
        """Record one batch, and the number of rows still waiting."""
        counts = (
            (self.batches, 1),
            (self.rows, report.rows),
            (self.padding, report.size - report.rows),
            (self.busy, report.work_s),
            (self.waited, report.wait_s),
        )
        for counter, value in counts:
            if value > 0:
                counter.inc(value, self.tags)
        self.batch_size.observe(report.rows, self.tags)
        self.batch_seconds.observe(report.work_s, self.tags)
        self.waiting.set(waiting, self.tags)


class RequestMetrics:
    """Metrics of one replica of the ingress."""

    def __init__(self) -> None:
        self.requests = Counter("tandem_serve_requests", "Requests answered", ("endpoint", "status"))  # type: ignore[arg-type]
        self.seconds = Histogram("tandem_serve_request_seconds", "Seconds of a request for images", SECONDS)
        self.first = Histogram("tandem_serve_first_preview_seconds", "Seconds to the first preview", SECONDS)
        self.given_up = Counter("tandem_serve_given_up", "Replicas that hung and were killed", ("stage",))
        self.in_flight = Gauge("tandem_serve_images_in_flight", "Images requested and not yet answered")
