"""Whether anything answers at a cluster's address: Ray itself asks for a quarter of an hour."""

from __future__ import annotations

import grpc
from ray._private.gcs_utils import create_gcs_channel
from ray._private.services import canonicalize_bootstrap_address

from tandem.errors import PlacementError

JOIN_TIMEOUT_S = 30


def check_answers(address: str, timeout_s: float = JOIN_TIMEOUT_S) -> None:
    """Raise PlacementError where no gRPC server answers at the address, or ConnectionError where `auto` finds none.

    A port that is closed, swallows bytes or speaks another protocol is tried until the time is over: the head of a
    cluster that is starting may take a while.
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
