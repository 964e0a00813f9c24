"""Stopping in time on ctrl-C, and on the SIGTERM of `ray job stop`, which kills three seconds later."""

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

    Uncommitted shards are dropped; the next run makes them again with the same bytes. If Ray has not stopped after
    GRACE_S, or at a second signal, the process exits at once, which is safe for the same reason. A thread does this,
    since the main thread may be in a call that no handler interrupts. Do not enter it around `ray.init`, which installs
    its own handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signalled = threading.Event()

    def guard() -> None:
        if not (number := receiver.recv(1)):
            return
        signalled.set()
        name = signal.Signals(number[0]).name
        say(f"\nstopping ({name}): committed shards are kept. To resume:\n  {resume}")
        receiver.settimeout(GRACE_S)
        try:
            receiver.recv(1)
        finally:
            os._exit(EXIT_CODE)

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    kept_fd = signal.set_wakeup_fd(sender.fileno())
    threading.Thread(target=guard, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(kept_fd)
        for number, handler in kept.items():
            signal.signal(number, handler)
        if not signalled.is_set():
            sender.close()


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Context manager: SIGTERM raises KeyboardInterrupt as SIGINT does, so that nothing half written is left."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    kept = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)
