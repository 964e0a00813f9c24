"""Protection of the models: limits of requests in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tandem_workers.requests.api_errors import ApiError
from tandem_workers.requests.edit_schema import MAX_PICTURE_PIXELS

RATE_WINDOW_S = 30.0
FIRST_GUESS_S = 2.0  # Retry-After while the rate is unknown
LONGEST_S = 60.0


class Admission:
    """Counts requests in flight, their images, and the pixels of the pictures that are edited, up to these numbers."""

    def __init__(
        self,
        max_requests: int,
        max_images: int,
        report: Callable[[int], None] = lambda in_flight: None,
        max_pixels: int = 8 * MAX_PICTURE_PIXELS,
    ):
        self.max_requests, self.max_images, self.max_pixels, self.report = max_requests, max_images, max_pixels, report
        self.requests = self.in_flight = self.pixels = 0
        self.done: deque[tuple[float, int]] = deque()  # (when, images) of the last RATE_WINDOW_S
        self.draining = False

    @contextmanager
    def admit(self, images: int, pixels: int = 0) -> Iterator[None]:
        """Context manager: counts the images as in flight. ApiError 429 if too many, 503 while the server drains."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=5)
        if self.requests == self.max_requests or self.in_flight + images > self.max_images:
            most = f"{self.max_requests} requests and {self.max_images} images in flight"
            message = f"expected at most {most}, got {images} more with {self.requests} and {self.in_flight}"
            raise ApiError(429, message, code="queue_full", retry_after_s=self.wait_s(images))
        if self.pixels + pixels > self.max_pixels:
            message = f"expected at most {self.max_pixels} pixels of pictures in flight, got {pixels} more"
            raise ApiError(429, f"{message} with {self.pixels}", code="queue_full", retry_after_s=self.wait_s(images))
        self.requests += 1
        self.pixels += pixels
        self.in_flight += images
        self.report(self.in_flight)
        try:
            yield
            self.done.append((time.monotonic(), images))
            self.forget()
        finally:
            self.requests -= 1
            self.pixels -= pixels
            self.in_flight -= images
            self.report(self.in_flight)

    def wait_s(self, images: int) -> float:
        """Seconds that this many images take at the recent rate; after that there is room for them."""
        self.forget()
        made = sum(count for _, count in self.done)
        if not made:
            return FIRST_GUESS_S
        return min(LONGEST_S, images * max(1.0, time.monotonic() - self.done[0][0]) / made)

    def forget(self) -> None:
        """Drop entries older than the window."""
        while self.done and time.monotonic() - self.done[0][0] > RATE_WINDOW_S:
            self.done.popleft()
