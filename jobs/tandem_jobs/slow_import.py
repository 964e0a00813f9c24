"""Prints a line while a command imports its modules, which takes seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MOMENT_S = 0.7


@contextmanager
def say_if_slow(text: str, after_s: float = MOMENT_S) -> Iterator[None]:
    """Context manager: prints the text on stderr, if that is a terminal, once the block has taken `after_s`."""

    def say() -> None:
        print(text, file=sys.stderr, flush=True)

    timer = threading.Timer(after_s, say)
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
