"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A free port between those of Ray's workers and those of outgoing connections: servers take theirs seconds later,
    and other processes of the tests look for theirs meanwhile."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.randint(20_000, 30_000)))
                return port
            except OSError:
                continue
