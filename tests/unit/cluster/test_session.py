"""Joining or starting a cluster: what is said where that cannot be."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from tandem.errors import JobError, PlacementError
from tandem_cluster.joining import JOIN_TIMEOUT_S, check_answers, joined_in_time
from tandem_cluster.session import (
    ROOT,
    Session,
    about_to_open,
    check_address,
    open_session,
    our_code_first,
    why_not_started,
)


@pytest.mark.parametrize(
    ("address", "dashboard"),
    [
        ("ray://head:10001", "http://head:8265"),
        ("http://head:8265", "http://head:8265"),
        ("https://head.example", "https://head.example"),
    ],
)
def test_an_address_to_send_jobs_to_is_no_cluster_to_join(address, dashboard, monkeypatch):
    line = f"expected auto or HOST:PORT of a Ray cluster that this machine is part of, got {address}"
    with pytest.raises(PlacementError, match=line) as caught, open_session(address, 0, 1):
        pass
    assert caught.value.hint == f"tandem submit --address {dashboard} -- COMMAND runs it there"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PlacementError, match=line), open_session(None, 0, 1):
        pass


@pytest.mark.parametrize("address", ["10.0.0.1", ":6379", "head:", "head:port", "head:65536", "head:6379/"])
def test_what_is_no_address_is_a_line_before_anything_starts(address):
    """Ray printed a traceback, and its cause came out as a failed job's."""
    line = f"--address: expected auto or HOST:PORT of a Ray cluster that this machine is part of, got {address}"
    with pytest.raises(PlacementError) as caught, open_session(address, 0, 1):
        pass
    assert str(caught.value) == line and "6379" in (caught.value.hint or "")


@pytest.mark.parametrize("address", [None, "auto", "local", "127.0.0.1:6379", "[::1]:6379", "head.example.org:1"])
def test_other_addresses_are_rays_to_find(address):
    check_address(address)


@pytest.mark.parametrize("listens", [False, True], ids=["closed", "silent"])
def test_an_address_where_nobody_answers_is_one_line_in_bounded_time(listens):
    """827 s before. A port that takes connections and says nothing is no cluster either."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(PlacementError, match=r"no Ray cluster answers at .*, tried for 0\.5 s") as caught:
            check_answers(address, timeout_s=0.5)
        assert time.monotonic() - began < 10
        assert "ray start --head" in (caught.value.hint or "")


def test_a_raylet_that_does_not_answer_ends_the_process_with_a_line(capfd):
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    with joined_in_time("192.0.2.1:6379", 0.01, end):
        assert ended.wait(10)
    assert codes == [2]
    assert "at 192.0.2.1:6379 answers, but this machine's raylet has not for 0.01 s" in capfd.readouterr().err
    with joined_in_time("192.0.2.1:6379", 0.05, end):
        pass
    time.sleep(0.1)
    assert codes == [2]


def test_a_cluster_of_our_own_is_not_asked():
    check_answers("local", timeout_s=0)


def test_the_joining_line_says_for_how_long(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert about_to_open("192.0.2.1:6379").endswith(f"at 192.0.2.1:6379, tried for up to {JOIN_TIMEOUT_S} s")


def test_a_folder_that_is_too_long_for_sockets_names_the_remedy(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 100)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    cause = "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /tmp/x"
    error = why_not_started(OSError(cause))
    assert isinstance(error, PlacementError)
    assert str(error).endswith(f"got one of 109 letters: /tmp/{'x' * 100}/ray")
    assert error.hint == "set RAY_TMPDIR to a short one, such as /tmp"


def test_logs_are_where_ray_keeps_them(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    error = why_not_started(RuntimeError("no raylet"))
    assert isinstance(error, JobError)
    assert error.hint == "its logs are in /scratch/ray/session_latest/logs"


def test_the_current_folder_is_changed_for_rays_start_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with our_code_first():
        assert Path.cwd() == ROOT
    assert Path.cwd() == tmp_path
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with our_code_first():
        assert Path.cwd() == ROOT
    os.chdir(tmp_path)


@pytest.mark.parametrize(
    ("num_gpus", "on_real_gpus", "insists"), [(2, True, True), (2, False, False), (0, False, False), (0, True, None)]
)
def test_replicas_insist_on_a_gpu_where_it_is_known_to_be_real(num_gpus, on_real_gpus, insists):
    """An autoscaler's nodes carry the labels of real ones in tests, too."""
    assert Session(1, 0, num_gpus, False, "auto").device_of(on_real_gpus) is insists
