"""What is said when parts of Ray are gone, with processes of our own in their place."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import ray

from tandem_cluster import health
from tandem_cluster.health import CHECK_EVERY_S, GCS_SILENCE_S, REPLY_TIMEOUT_S, ClusterHealth, process_state


@pytest.fixture
def process() -> Iterator[subprocess.Popen]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.wait()


def wait_for(pid: int, state: str) -> None:
    while process_state(pid) not in state:
        time.sleep(0.01)


def test_a_part_that_has_ended_loses_the_session_also_before_it_is_reaped(process):
    session = ClusterHealth({"raylet": process.pid}, lambda: True)
    assert session.check() == (None, [])
    process.kill()
    wait_for(process.pid, "Z")
    line = f"Ray's raylet on this machine (process {process.pid}) has ended"
    assert session.check() == (line, [])
    process.wait()
    assert session.check() == (line, [])


def test_a_stopped_part_is_named_once_each_time(process):
    session = ClusterHealth({"raylet": process.pid}, lambda: True)
    for _ in range(2):
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(process.pid, "T")
        line = f"warning: Ray's raylet on this machine (process {process.pid}) is stopped: kill -CONT {process.pid}"
        assert session.check() == (None, [line])
        assert session.check() == (None, [])
        os.kill(process.pid, signal.SIGCONT)
        wait_for(process.pid, "RS")
        assert session.check() == (None, [])


def test_a_machine_that_ray_has_given_up_loses_the_session():
    assert (
        ClusterHealth({}, lambda: False).check()[0]
        == "Ray has declared this machine dead: its raylet did not answer in time"
    )


def test_silence_of_the_gcs_is_waited_out_for_less_time_than_ray_itself_waits(monkeypatch):
    now, answers = [100.0], [False]

    def node_is_alive() -> bool:
        if not answers[0]:
            raise ray.exceptions.RpcError("deadline exceeded")
        return True

    monkeypatch.setattr(health.time, "monotonic", lambda: now[0])
    session = ClusterHealth({}, node_is_alive)
    assert GCS_SILENCE_S + 2 * (REPLY_TIMEOUT_S + CHECK_EVERY_S) < 60
    assert session.check() == (None, [])
    now[0] += GCS_SILENCE_S
    assert session.check() == (None, [])
    answers[0] = True
    assert session.check() == (None, [])
    answers[0] = False
    now[0] += 600
    assert session.check() == (None, []), "this process may have been stopped since"
    now[0] += GCS_SILENCE_S
    assert session.check() == (None, [])
    now[0] += 1
    assert session.check() == ("Ray's GCS has not answered for 41 s", [])


def test_another_error_of_rays_client_ends_neither_the_watch_nor_the_job(monkeypatch):
    now = [100.0]

    def node_is_alive() -> bool:
        raise ray.exceptions.RaySystemError("not now")

    monkeypatch.setattr(health.time, "monotonic", lambda: now[0])
    session = ClusterHealth({}, node_is_alive)
    for _ in range(3):
        now[0] += GCS_SILENCE_S
        assert session.check() == (None, [])
