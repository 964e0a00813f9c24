"""Seconds that this process has spent in named parts of its start: reading weights, checking kernels, and so on."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_seconds: defaultdict[str, float] = defaultdict(float)
_thread = threading.local()


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Context manager and decorator: add the seconds inside to a part. Those of nested parts are not counted twice."""
    outer, _thread.inner_s = getattr(_thread, "inner_s", 0.0), 0.0
    began = time.perf_counter()
    try:
        yield
    finally:
        lasted = time.perf_counter() - began
        with _lock:
            _seconds[name] += lasted - _thread.inner_s
        _thread.inner_s = outer + lasted


def add_seconds(name: str, seconds: float) -> None:
    """Add seconds that were measured elsewhere."""
    with _lock:
        _seconds[name] += seconds


def seconds_by_part() -> dict[str, float]:
    """All parts of this process so far."""
    with _lock:
        return dict(_seconds)
