"""The endpoint as Ray Serve runs it: from its config file, and with replicas that follow the load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from support.ports import free_port
from support.runs import wait_until
from support.served import Served, replicas, serve
from support.sources import PYTHONPATH, ROOT
from tandem_jobs.bench.http_load import closed_loop, statuses

pytestmark = pytest.mark.slow


def body(number: int) -> dict:
    return {"prompt": str(number % 12), "seed": number}


def test_a_second_drafter_comes_with_the_load(tmp_path: Path):
    server = serve(tmp_path / "log", "--placement", "split", "--autoscale", "--drafters", "2", "--refiners", "1")
    try:
        assert (len(replicas("Drafter", server)), len(replicas("Refiner", server))) == (1, 1)
        answers: list = []
        load = threading.Thread(target=lambda: answers.extend(closed_loop(server.url, body, 40, 15)))
        load.start()
        wait_until(lambda: len(replicas("Drafter", server)) == 2, "two drafters", seconds=60)
        load.join()
        assert set(statuses(answers)) == {"200"}
        assert len(replicas("Refiner", server)) == 1
    finally:
        assert server.stop() == 0


def test_the_config_file_runs_as_it_is(tmp_path: Path):
    config = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    config["http_options"]["port"] = port = free_port()  # all that is changed
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "TANDEM_API_KEYS": "a-key-for-this-test-0001"}
    command = [Path(sys.executable).with_name("serve"), "run", tmp_path / "serve.yaml"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    server = Served(process, f"http://127.0.0.1:{port}", tmp_path / "log", key="a-key-for-this-test-0001")
    try:
        wait_until(server.is_ready, "the server is ready")
        status, answer = server.post(prompt="flag", seed=3)
        assert (status, answer["tandem"]["class_name"]) == (200, "flag")
        server.key = ""
        assert server.post(prompt="flag")[0] == 401
    finally:
        server.stop()


def test_a_config_file_with_a_wrong_option_says_what_was_expected(tmp_path: Path):
    from tandem.errors import InputError
    from tandem_jobs.serve import app

    with pytest.raises(InputError, match="--batch: expected a whole number above 0, got '-1'"):
        app({"batch": -1})
