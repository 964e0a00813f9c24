"""Checks that a cluster answers at its address; Ray itself would retry for a quarter of an hour."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from ray._private.gcs_utils import create_gcs_channel
from ray._private.services import canonicalize_bootstrap_address

from tandem.errors import PlacementError

JOIN_TIMEOUT_S = 30
INIT_TIMEOUT_S = 120


def check_answers(address: str, timeout_s: float = JOIN_TIMEOUT_S) -> None:
    """Raise PlacementError if no gRPC server answers at the address, or ConnectionError if `auto` finds no cluster.

    A port that is closed, silent or speaks another protocol is retried until the time is over: the head of a
    cluster may still be starting.
    """
    found = canonicalize_bootstrap_address(address)
    if found is None:  # a cluster of our own
        return
    channel = create_gcs_channel(found)
    try:
        grpc.channel_ready_future(channel).result(timeout=timeout_s)
    except grpc.FutureTimeoutError as error:
        raise PlacementError(
            f"no Ray cluster answers at {found if address == 'auto' else address}, tried for {timeout_s:g} s",
            "start one with: ray start --head, or drop --address",
        ) from error
    finally:
        channel.close()


@contextmanager
def joined_in_time(
    address: str, timeout_s: float = INIT_TIMEOUT_S, end: Callable[[int], object] = os._exit
) -> Iterator[None]:
    """A context that exits the process if `ray.init` hangs, as it does when this machine's raylet is stopped."""

    stderr = os.dup(2)  # the caller may have redirected stderr by then

    def give_up() -> None:
        line = f"error: the Ray cluster at {address} answers, but this machine's raylet has not for {timeout_s:g} s\n"
        hint = "hint: the raylet may be stopped, or this machine not a node of it; ray start --address joins it again\n"
        os.write(stderr, (line + hint).encode())
        end(PlacementError.exit_code)

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        os.close(stderr)
