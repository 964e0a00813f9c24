"""Reports waits for a server."""

from __future__ import annotations

import sys
import threading
import time

SAY_AFTER_S, SAY_EVERY_S = 5.0, 15.0

_last = {"at": -SAY_EVERY_S}
_lock = threading.Lock()


def say_waiting(server: str, cause: str, since: float, left_s: float | None = None) -> None:
    """Print one line to stderr, at most every SAY_EVERY_S for the whole process.

    `since`: start of the wait by the monotonic clock; short waits are not reported. Nobody sees the stderr of actors,
    so `run.store_watch` probes the store from the driver.
    """
    now = time.monotonic()
    with _lock:
        if now - since < SAY_AFTER_S or now - _last["at"] < SAY_EVERY_S:
            return
        _last["at"] = now
    most = "" if left_s is None else f" for {max(0, left_s):.0f} s more at most"
    print(f"waiting for {server}: {cause}; asking again{most}", file=sys.stderr, flush=True)
