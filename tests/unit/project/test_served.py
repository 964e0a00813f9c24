"""Servers that tests start leave no processes behind."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from support import served
from support.ports import free_port


@pytest.mark.parametrize("script", ["sleep 60", "exit 3"])
def test_a_server_that_is_not_ready_in_time_is_killed_with_all_that_it_started(monkeypatch, tmp_path, script):
    started = []

    def start(argv, log, **variables):
        log.touch()
        command = ["bash", "-c", f"setsid sleep 60 & {script}"]
        started.append(subprocess.Popen(command, env=os.environ | variables, start_new_session=True))
        return started[-1]

    monkeypatch.setattr(served, "start", start)
    port = free_port()
    with pytest.raises(AssertionError):
        served.serve(tmp_path / "log", port=port, seconds=0.3)
    assert started[0].returncode == (3 if script == "exit 3" else -signal.SIGKILL)
    assert served.processes(served.Served(started[0], f"http://127.0.0.1:{port}", tmp_path / "log")) == {}
