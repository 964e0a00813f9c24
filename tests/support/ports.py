"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quiet_port() -> int:
    """A free port between those of Ray's workers and those of outgoing connections: nodes take theirs seconds later."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.randint(20_000, 30_000)))
                return port
            except OSError:
                continue
