"""Training on Ray Train, in S3: a worker killed, the driver killed, an error of ours, ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from support.s3_server import made_bucket
from support.toy_task import SETTINGS, MemoryHost, MortalTask, ToyTask
from tandem.errors import JobError, PlacementError
from tandem.training.loop import Loop
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store
from tandem_workers.training.checkpoint_files import read_average
from tandem_workers.training.checkpoint_record import committed_steps
from tandem_workers.training.log_file import LOG
from tandem_workers.training.run import Watching, WorkerGroup, finished, run_training
from tandem_workers.training.sample_sheets import SampleSheets

pytestmark = pytest.mark.usefixtures("ray_cluster", "bucket")

# Its second worker stands still at step 35, so that nothing is over before the driver is killed
DRIVER = """
import sys
from pathlib import Path
from support.toy_task import SETTINGS, MortalTask
from tandem_cluster.session import open_session
from tandem_workers.storage.places import open_store
from tandem_workers.training.run import Watching, WorkerGroup, run_training

watching = Watching(lambda values: print(values["step"], flush=True), print)
with open_session(sys.argv[1], 0, 0):
    task = MortalTask(Path(sys.argv[2]), 35, number=19)
    run_training(task, SETTINGS, open_store(sys.argv[3]), WorkerGroup(2), watching)
"""
SILENT = Watching(lambda values: None, lambda line: None)


@pytest.fixture(scope="module")
def bucket(s3_server):
    with made_bucket("training") as client:
        yield client


@pytest.fixture(scope="module")
def undisturbed() -> MemoryHost:
    host = MemoryHost()
    Loop(ToyTask(evaluated=True), SETTINGS, host).run()
    return host


def losses(store: Store) -> list[float]:
    """Of the log, which has every step once."""
    records = [json.loads(line) for line in store.read(LOG).splitlines()]
    found = [record for record in records if "loss" in record]
    assert [record["step"] for record in found] == list(range(1, SETTINGS.steps + 1))
    return [record["loss"] for record in found]


def test_a_killed_worker_changes_no_loss(undisturbed, tmp_path, capfd):
    store, said, records = open_store("s3://training/worker"), [], []
    task, data = MortalTask(tmp_path / "killed", 33), {"ids": np.arange(10)}
    outcome = run_training(task, SETTINGS, store, WorkerGroup(2), Watching(records.append, said.append), data, keep=1)
    assert (tmp_path / "killed").exists()
    assert said[-2:] == ["a worker was lost; starting the workers again", "resumed at step 30"]
    assert losses(store) == pytest.approx(undisturbed.losses(), rel=1e-4)
    assert [r["step"] for r in records if "loss" in r][-20:] == list(range(31, 51))
    assert outcome == finished(store, SETTINGS.steps) and finished(store, 60) is None
    assert outcome.evaluation == pytest.approx({"heldout_loss": undisturbed.records[-1]["heldout_loss"]}, rel=1e-4)
    assert committed_steps(store) == [50] and read_average(store)[0] == 50
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""  # nothing of Ray's own
    assert not Path("~/ray_results").expanduser().exists()


@pytest.mark.slow
def test_a_killed_driver_and_an_error_change_no_loss_for_another_number_of_workers(undisturbed, tmp_path):
    place = "s3://training/driver"
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, address, str(tmp_path / "stopped"), place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert any(line == "35\n" for line in driver.stdout)
        driver.kill()
    store = open_store(place)
    with pytest.raises(JobError, match="loss is nan at step 45"):
        run_training(ToyTask(broken_at=45, evaluated=True), SETTINGS, store, WorkerGroup(1), SILENT)
    assert committed_steps(store) == [40, 30]
    run_training(ToyTask(evaluated=True), SETTINGS, store, WorkerGroup(2), SILENT)
    assert losses(store) == pytest.approx(undisturbed.losses(), rel=1e-4)


def test_ctrl_c_saves_and_ends(out):
    settings, said = replace(SETTINGS, steps=10**6, checkpoint_every=10**6), []
    before = signal.getsignal(signal.SIGINT)

    def interrupt(values: dict[str, float]) -> None:
        if values["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    store = open_store(out)
    with pytest.raises(KeyboardInterrupt):
        run_training(ToyTask(), settings, store, WorkerGroup(1), Watching(interrupt, said.append))
    (step,) = committed_steps(store)
    assert said[-1] == f"stopped at step {step}; the same command goes on from here"
    assert json.loads(store.read(LOG).splitlines()[-1])["step"] == step
    assert signal.getsignal(signal.SIGINT) is before


def test_more_workers_than_the_cluster_holds_are_refused(out):
    with pytest.raises(PlacementError, match=r"99 workers .* expected at least 99 CPUs in the cluster, found"):
        run_training(ToyTask(), SETTINGS, open_store(out), WorkerGroup(99), SILENT)


def test_a_sheet_whose_process_dies_is_told_and_ends_no_training(tmp_path):
    class Deadly:
        def draw(self, store: Store) -> None:
            os._exit(11)

    said = list[str]()
    with SampleSheets(open_store(str(tmp_path)), Deadly(), 1, said.append) as sheets:
        sheets.note(1)
    assert len(said) == 1 and said[0].startswith("no sheet of samples: WorkerCrashedError: ")
