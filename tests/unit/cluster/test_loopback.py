"""Ray's setting for loopback. That it has its effect is seen by `tests/e2e/test_endpoint.py`."""

from __future__ import annotations

import os

import pytest
from ray._common.network_utils import is_localhost
from ray._private import ray_constants, services

from tandem_cluster.loopback import VARIABLE, on_loopback


@pytest.fixture(autouse=True)
def not_set(monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("ray._private.worker._global_node", None)


def fail_on_loopback() -> None:
    with on_loopback():
        assert is_localhost(services.get_node_ip_address())
        assert os.environ[VARIABLE] == "0"
        raise KeyError


def test_within_it_ray_takes_the_address_of_loopback_and_afterwards_what_it_took_before():
    before = ray_constants.ENABLE_RAY_CLUSTER
    with pytest.raises(KeyError):
        fail_on_loopback()
    assert VARIABLE not in os.environ and before == ray_constants.ENABLE_RAY_CLUSTER


def test_a_variable_that_is_set_decides(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    before = ray_constants.ENABLE_RAY_CLUSTER
    with on_loopback():
        assert (os.environ[VARIABLE], ray_constants.ENABLE_RAY_CLUSTER) == ("1", before)
