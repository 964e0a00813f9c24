"""Parts of a dataset: ranges of shards, and who finishes it."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from support.jobs_without_ray import JobWithoutRay
from tandem.errors import InputError
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.options.spec import parse
from tandem_jobs.run.job import Job
from tandem_jobs.run.shard_range import choose_part, full_command, resume_command
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import ShardPlan, ShardRows
from tandem_workers.storage import layout
from tandem_workers.storage.local_store import LocalStore
from tandem_workers.storage.store import Stored

PLAN = ShardPlan(num_rows=40, shard_size=4)


@pytest.mark.parametrize(
    ("text", "part"), [(None, range(10)), ("0-9/10", range(10)), ("3-5/10", range(3, 6)), (" 9/10 ", range(9, 10))]
)
def test_a_part_is_a_range_of_shards(text, part):
    assert choose_part(text, PLAN) == part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-9", "expected FIRST-LAST/ALL such as 0-9/10, got 0-9"),
        ("0-9/" + "9" * 5000, "expected FIRST-LAST/ALL"),
        ("0-9/40", "expected the 10 shards of this job after /, got 0-9/40"),
        ("5-10/10", "expected ascending shards from 0 to 9, got 5-10/10"),
        ("5-4/10", "expected ascending shards from 0 to 9"),
        ("-1/10", "expected FIRST-LAST/ALL"),
    ],
)
def test_a_wrong_part_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        choose_part(text, PLAN)


@pytest.mark.parametrize("more", [["--overwrite"], ["--max-failed-shards", "1"]])
def test_what_concerns_all_shards_does_not_go_with_a_part(more):
    with pytest.raises(InputError, match=f"expected --shards without {more[0]}"):
        parse(GenerateSpec, ["--classes", "all", "--images", "4", "--out", "o", "--shards", "0/2", *more], "")


def test_the_card_names_the_whole_command():
    command = "tandem generate --shards 0-1/4 --overwrite --out 'my place' --shards=2/4"
    assert full_command(command) == "tandem generate --out 'my place'"


@pytest.fixture
def job(tmp_path):
    """A job of ten shards at its place; `finished` has what failed at each closing."""
    store, finished = LocalStore(str(tmp_path / "out")), []
    open_job(store, {"seed": 1})

    def commit(*shards):
        for shard in shards:
            index = np.array(PLAN.indices(shard))
            rows = ShardRows(shard=shard, index=index, label=index.astype(np.int32))
            Manifest(store).commit_shard(shard, [Stored(layout.shard_path(shard, "tar"), 1, "0" * 64)], rows, {})

    class Kept(JobWithoutRay):
        def files(self, entries, failed):
            finished.append(dict(failed))
            return {layout.CARD: f"card of {len(entries)}".encode()}

    return Kept(store, PLAN, None, None, {"seed": 1}, {}), commit, finished


def with_part(job: Job, text: str) -> Job:
    return type(job)(job.store, PLAN, None, None, {"seed": 1}, {}, shards=text)


def test_a_part_that_is_done_needs_no_cluster_and_the_last_one_finishes(job):
    job, commit, finished = job
    commit(0, 1, 2, 3, 4)
    summary = with_part(job, "0-4/10").run()
    assert (summary["images"], summary["resumed_shards"], summary["shards"]) == (0, 5, "0-4/10")
    assert summary["complete"] is False and finished == []
    commit(5, 6, 7, 8, 9)
    assert with_part(job, "5-9/10").run()["complete"] is True
    assert finished == [{}]
    assert with_part(job, "0-4/10").run()["complete"] is True
    assert finished == [{}]


def test_the_whole_job_finishes_what_parts_have_made(job):
    job, commit, finished = job
    commit(*range(10))
    assert job.run()["complete"] is True
    assert finished == [{}]


def test_a_finished_job_of_int8_is_asked_for_its_identity_on_cpus_alone(job):
    """On GPUs its settings are refused, and it would be said so of a dataset that is done."""
    job, commit, _ = job
    commit(*range(10))
    asked, identity = [], job.identity
    job.options.int8 = True
    job.identity = lambda on_real_gpus: asked.append(on_real_gpus) or identity(on_real_gpus)
    assert job.run()["complete"] is True
    assert asked == [False]


def test_parts_that_end_at_the_same_time_close_alike(job):
    job, commit, finished = job
    start = threading.Barrier(5)

    def make(first):
        commit(first)
        start.wait()
        commit(first + 1)
        return with_part(job, f"{first}-{first + 1}/10").run()

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(make, range(0, 10, 2)))
    assert Manifest(job.store).committed() == frozenset(range(10))
    assert finished and all(failed == {} for failed in finished)
    assert job.run()["complete"]  # two that closed at once may have left one to close again
    closing = json.loads(job.store.read("_SUCCESS"))
    assert (closing["rows"], closing["failed_shards"]) == (40, {})


def test_a_dataset_closed_with_failures_is_closed_again_when_they_were_made(job):
    job, commit, finished = job
    commit(*range(9))
    job.record = open_job(job.store, {"seed": 1})
    job.close_if_last({9: "no numbers"})
    assert json.loads(job.store.read("_SUCCESS"))["failed_shards"] == {"9": "no numbers"}
    assert with_part(job, "0-3/10").run()["complete"] is True
    assert len(finished) == 1
    commit(9)
    assert with_part(job, "9/10").run()["complete"] is True
    assert finished == [{9: "no numbers"}, {}]
    assert json.loads(job.store.read("_SUCCESS"))["failed_shards"] == {}


def test_a_failure_that_another_job_has_made_up_for_is_none(job):
    job, commit, finished = job
    commit(*range(10))
    job.record = open_job(job.store, {"seed": 1})
    job.close_if_last({9: "no numbers"})
    assert finished == [{}]


def test_a_card_that_another_job_took_away_is_written_again(job):
    job, commit, finished = job
    commit(*range(10))
    job.run()
    job.store.remove(layout.CARD)
    job.run()
    assert finished == [{}, {}] and job.store.exists(layout.CARD)


def test_what_is_shown_to_go_on_removes_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "generate", "--overwrite", "--out", "o"])
    assert resume_command() == "tandem generate --out o"
