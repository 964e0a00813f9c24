"""Stopping in time: ctrl-C, and the SIGTERM of `ray job stop`, which kills three seconds later."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jobs.progress import say

GRACE_S = 2.0
EXIT_CODE = 130


@contextmanager
def stop_in_time(resume: str) -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM says how to resume and raises KeyboardInterrupt.

    Shards in hand are dropped: what is not committed is made again, alike. If Ray has not let go after GRACE_S, or
    at a second signal, the process ends at once, which is safe for the same reason. To be entered after
    `ray.init`, which puts its own handlers in place.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, leave)
        signal.signal(signal.SIGTERM, leave)
        say(f"\nstopping ({signal.Signals(number).name}): what was committed is kept. To go on from there:\n  {resume}")
        timer = threading.Timer(GRACE_S, leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def leave(*_: object) -> None:
        sys.stdout.flush()
        os._exit(EXIT_CODE)

    kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
