"""Settings of Ray Data that last as long as one execution of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.data import DataContext


@contextmanager
def own_context() -> Iterator[DataContext]:
    """Context manager: a copy of this process's settings, in force until the end; then its own are again.

    Without it the next execution in the process, ours or a user's, would have the policies of this one.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # a thread for each task, for a number that nobody reads
    context.execution_no_progress_timeout_s = -1  # waiting for a node is said, and the watchdog knows slow blocks
    with DataContext.current(context):
        yield context
