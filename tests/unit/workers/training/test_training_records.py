"""Parts of a training run that need no cluster: whose place it is, its log, and what the desk lets workers do."""

import json

import pytest

from support.toy_task import SETTINGS
from tandem.errors import InputError, JobError, OutputError
from tandem_workers.training.desk import MAX_ATTEMPTS, Desk
from tandem_workers.training.log_file import LOG, LogFile
from tandem_workers.training.run_record import RECORD, claim_run

IDENTITY = {"kind": "toy", **SETTINGS.identity()}


def test_the_same_run_goes_on_in_its_place_and_another_is_refused_with_the_fields(store):
    claim_run(store, IDENTITY, {"command": "first"})
    claim_run(store, IDENTITY, {"command": "second"})
    assert json.loads(store.read(RECORD))["info"] == {"command": "first"}
    with pytest.raises(
        OutputError, match=r"another training run[^\n]*\n  peak_lr: there 0.01, here 0.1\n  seed: there 0, here 1"
    ):
        claim_run(store, {**IDENTITY, "seed": 1, "peak_lr": 0.1}, {})


@pytest.mark.parametrize(
    ("name", "message"), [("notes.txt", "holds no training run"), (RECORD, "is not a JSON object")]
)
def test_a_place_with_other_files_is_refused(store, name, message):
    store.put_once(name, b"[]")
    with pytest.raises(OutputError, match=message):
        claim_run(store, IDENTITY, {})


def test_the_log_has_each_step_once_after_a_resume(store):
    log = LogFile(store)
    log.begin(0)
    for step in range(1, 6):
        log.add({"step": step, "loss": 1 / step})
    log.write()
    store.replace(LOG, store.read(LOG) + b'{"step": 6, "lo')  # half a line, as of another tool
    resumed = LogFile(store)
    resumed.begin(3)
    for step in range(4, 7):
        resumed.add({"step": step, "loss": 1 / step})
    resumed.write()
    records = [json.loads(line) for line in store.read(LOG).splitlines()]
    assert records == [{"step": step, "loss": 1 / step} for step in range(1, 7)]


def test_workers_are_started_again_until_nothing_comes_of_it():
    desk = Desk()
    assert desk.begin()
    for _ in range(3 * MAX_ATTEMPTS):  # each attempt saves a checkpoint
        desk.committed()
        assert desk.begin()
    desk.committed()
    for number in range(MAX_ATTEMPTS - 1):
        desk.lost(f"RuntimeError: cause {number}")
        desk.lost("RuntimeError: a consequence")
        assert desk.begin()
    desk.lost("RuntimeError: the last one")
    assert not desk.begin()
    error, outcome = desk.result()
    assert isinstance(error, JobError) and outcome is None
    assert str(error) == "training ended 3 times without a new checkpoint: RuntimeError: the last one"
    assert "RuntimeError: cause 0; starting the workers again" in desk.take_news().lines


def test_after_an_error_of_ours_or_a_stop_no_worker_begins():
    desk = Desk()
    desk.fail(InputError("a teacher of another vocabulary"))
    desk.fail(JobError("a consequence"))
    assert not desk.begin() and str(desk.result()[0]) == "a teacher of another vocabulary"
    desk = Desk()
    desk.stop()
    assert not desk.begin() and desk.is_stopping()
