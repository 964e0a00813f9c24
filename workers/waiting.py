"""The line that says that a server is waited for."""

from __future__ import annotations

import sys
import threading
import time

SAY_AFTER_S, SAY_EVERY_S = 5.0, 15.0

_last = {"at": -SAY_EVERY_S}
_lock = threading.Lock()


def say_waiting(whom: str, cause: str, since: float, left_s: float | None = None) -> None:
    """One line on stderr, for all that waits in this process no more often than every SAY_EVERY_S.

    `since` is when the wait began, by the monotonic clock: short ones need no line. An actor's stderr is seen by
    nobody: there `jobs.store_watch` asks for those who wait.
    """
    now = time.monotonic()
    with _lock:
        if now - since < SAY_AFTER_S or now - _last["at"] < SAY_EVERY_S:
            return
        _last["at"] = now
    most = "" if left_s is None else f" for {max(0, left_s):.0f} s more at most"
    print(f"waiting for {whom}: {cause}; asking again{most}", file=sys.stderr, flush=True)
