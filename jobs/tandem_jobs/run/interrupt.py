"""Stopping in time: ctrl-C, and the SIGTERM of `ray job stop`, which kills three seconds later."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tandem_jobs.run.progress import say

GRACE_S = 1.5
EXIT_CODE = 130


@contextmanager
def stop_in_time(resume: str) -> Iterator[None]:
    """Context manager: the first SIGINT or SIGTERM says how to resume and raises KeyboardInterrupt.

    Shards in hand are dropped: what is not committed is made again, alike. If Ray has not let go after GRACE_S, or
    at a second signal, the process ends at once, which is safe for the same reason. A thread sees to that, since the
    main thread may be deep in a call that no handler interrupts. Not to be entered around `ray.init`, which puts
    its own handlers in place.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    here, there = socket.socketpair()
    there.setblocking(False)
    told = threading.Event()

    def guard() -> None:
        if not (number := here.recv(1)):
            return
        told.set()
        name = signal.Signals(number[0]).name
        say(f"\nstopping ({name}): what was committed is kept. To go on from there:\n  {resume}")
        here.settimeout(GRACE_S)
        try:
            here.recv(1)
        finally:
            os._exit(EXIT_CODE)

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    kept_fd = signal.set_wakeup_fd(there.fileno())
    threading.Thread(target=guard, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(kept_fd)
        for number, handler in kept.items():
            signal.signal(number, handler)
        if not told.is_set():
            there.close()
