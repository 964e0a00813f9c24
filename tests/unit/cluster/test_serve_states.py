"""Lines of `tandem serve` about its replicas and proxies, from the states that Ray Serve reports."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import DeploymentStatusOverview, ProxyStatus, ReplicaState

from tandem_cluster.serve_states import ServeStates

LOST = "A replica's health check failed.\nThis deployment will be UNHEALTHY."
NODE = "0123456789abcdef"


def deployment(status: str, message: str = "", **replicas: int) -> DeploymentStatusOverview:
    states = {ReplicaState(name): count for name, count in replicas.items()}
    return DeploymentStatusOverview(status, "UNSPECIFIED", states, message)  # type: ignore[arg-type]


def look(states: ServeStates, now: float, refiner: Any = None, proxy: str = "HEALTHY") -> list[str]:
    refiner = refiner or deployment("HEALTHY", RUNNING=1)
    return states.lines({"Refiner": refiner}, {NODE: ProxyStatus(proxy)}, now)


def test_a_lost_replica_and_its_return_are_a_line_each(tmp_path):
    states = ServeStates(str(tmp_path))
    assert look(states, 0.0) == []
    lost = deployment("UNHEALTHY", LOST, STARTING=1)
    assert look(states, 10.0, lost) == ["warning: Refiner: a replica is lost, 0 run; another one starts"]
    assert look(states, 11.0, lost) == []
    assert look(states, 17.0) == ["Refiner: all replicas run again, after 7 s"]
    assert look(states, 18.0) == []


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (deployment("UNHEALTHY", LOST, STARTING=1), "it is still starting"),
        (deployment("UNHEALTHY", LOST), "A replica's health check failed. This deployment will be UNHEALTHY."),
        (deployment("DEPLOY_FAILED"), "Ray Serve gives no reason"),
    ],
)
def test_a_replica_that_is_not_replaced_for_long_gets_one_line_of_reason(tmp_path, status, reason):
    states = ServeStates(str(tmp_path))
    look(states, 0.0, status)
    assert look(states, 10.0, status) == []
    assert look(states, 16.0, status) == [f"warning: Refiner is not replaced yet, after 16 s: {reason}"]
    assert look(states, 60.0, status) == []


def test_a_full_disk_is_the_reason_where_it_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=10, f_frsize=4096))
    states = ServeStates(str(tmp_path))
    status = deployment("UNHEALTHY", LOST, STARTING=1)
    look(states, 0.0, status)
    (line,) = look(states, 16.0, status)
    assert line.endswith(f"16 s: no space is left for Ray's logs in {tmp_path}; free some")


def test_a_lost_proxy_and_its_return_are_a_line_each(tmp_path):
    states = ServeStates(str(tmp_path))
    where = "the HTTP proxy on node 01234567"
    expected = [f"warning: {where} is lost: connections are refused; another one starts"]
    assert look(states, 0.0, proxy="STARTING") == expected
    assert look(states, 5.0, proxy="UNHEALTHY") == []
    assert look(states, 9.0) == [f"{where} answers again, after 9 s"]
    assert look(states, 10.0, proxy="DRAINING") == []
