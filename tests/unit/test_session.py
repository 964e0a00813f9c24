"""Joining or starting a cluster: what is said where that cannot be."""

import os
from pathlib import Path

import pytest

from cluster.session import ROOT, check_address, open_session, our_code_first, why_not_started
from tandem.errors import JobError, PlacementError


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


@pytest.mark.parametrize("address", [None, "auto", "local", "127.0.0.1:6379"])
def test_other_addresses_are_rays_to_find(address):
    check_address(address)


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
