"""Ray on loopback, where other machines cannot reach it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants

VARIABLE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER


@contextmanager
def on_loopback() -> Iterator[None]:
    """Context manager around `ray.init`: the Ray that it starts listens on 127.0.0.1 instead of all networks, with its
    metrics, control store and workers. Only replicas of Ray Serve have a port for gRPC that no setting closes.

    Ray reads its setting from a variable when it is imported. So both are set here: the value that was read and, for
    the processes that Ray starts, the variable. A variable that is set already decides.
    """
    if VARIABLE in os.environ:
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[VARIABLE], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        ray_constants.ENABLE_RAY_CLUSTER = before
