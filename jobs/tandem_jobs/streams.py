"""Handles standard streams that the shell has closed, and pipes whose reader has gone."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CUT_OFF = 128 + 13  # the exit code that shells show for a program ended by SIGPIPE


class OutputCut(Exception):
    """The reader of the output has gone, as after `| head -1`."""


@contextmanager
def usable_streams() -> Iterator[None]:
    """Context manager: all three streams can be used. Raises OutputCut if a reader goes away.

    A closed stream is replaced by the null device: else the next opened file would get its number, and printed lines
    would end up in that file.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 (as long as the process)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:
        cut = [stream for stream in (sys.stdout, sys.stderr) if has_no_reader(stream.fileno())]
        if not cut:
            raise
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in cut:  # buffered output is discarded, also at exit
            os.dup2(null, stream.fileno())
        os.close(null)
        raise OutputCut from error


def has_no_reader(number: int) -> bool:
    poll = select.poll()
    poll.register(number, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
