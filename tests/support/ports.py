"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LISTENING = "0A"  # state of a socket in /proc/net/tcp


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


def listening_addresses(pids: Iterable[int]) -> set[str]:
    """IP addresses, without ports, on which these processes of this machine listen for TCP."""
    mine = set()
    for pid in pids:
        with suppress(OSError):  # it has ended
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):  # it was closed
                    mine.add(link.readlink().name)
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTENING and f"socket:[{inode}]" in mine:
                words = bytes.fromhex(local.partition(":")[0])  # four bytes at a time, each four backwards
                address = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.add(socket.inet_ntop(family, address))
    return found
