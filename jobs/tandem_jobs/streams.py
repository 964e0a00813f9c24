"""Standard streams as shells hand them over: closed ones, and pipes whose reader has gone."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CUT_OFF = 128 + 13  # as shells report a tool that SIGPIPE ended


class OutputCut(Exception):
    """Nobody reads the output any more, as after `| head -1`."""


@contextmanager
def usable_streams() -> Iterator[None]:
    """A context in which all three streams can be used. Raises OutputCut where a reader goes away.

    A closed stream becomes the null device: else the next file that is opened would take its number, and whatever is
    printed would end up in it.
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
        for stream in cut:  # what is still buffered goes nowhere, at exit too
            os.dup2(null, stream.fileno())
        os.close(null)
        raise OutputCut from error


def has_no_reader(number: int) -> bool:
    poll = select.poll()
    poll.register(number, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
