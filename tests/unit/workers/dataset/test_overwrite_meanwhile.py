"""A job that replaces another of 95 shards while that one runs: afterwards every image is its own."""

from __future__ import annotations

import os
import threading
from functools import cache

import pytest

from support.jobs_without_ray import JobWithoutRay, no_ray
from support.sample_shards import encoded_shard, sample_format, sha256
from tandem.errors import OutputError
from tandem_jobs.run.job import Job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.dataset.verify import verify
from tandem_workers.storage import layout
from tandem_workers.storage.places import open_store

PLAN = ShardPlan(95, 1)
MOMENTS = (0, 10, 21, 33, 44, 55, 66, 77, 94, 95)  # shards that are committed when the other begins; then it closes
ALL = os.environ.get("TANDEM_ALL_MOMENTS")


@cache
def picture(seed: int, shard: int):
    return encoded_shard(shard, PLAN, noise=seed)


def command(store, seed: int, overwrite: bool) -> Job:
    identity = {"seed": seed, "rows": PLAN.num_rows, "shard_size": PLAN.shard_size}
    return JobWithoutRay(
        store, PLAN, sample_format(), lambda shard: picture(seed, shard), identity, {}, overwrite=overwrite
    )


@pytest.mark.parametrize("moment", MOMENTS if ALL else (33, 95))
def test_a_job_that_is_replaced_meanwhile_leaves_nothing_of_its_own(tmp_path, moment):
    store = open_store(str(tmp_path / "out"))
    reached, outcomes = threading.Event(), {}

    def make_shards(job, todo, total, max_failed, start_up):
        for done, shard in enumerate(todo):
            if done == moment:
                reached.set()
            job.write(job.pools[0].stages[0](shard), [])
        reached.set()
        return {"failed_shards": {}}

    def run(seed: int, overwrite: bool) -> None:
        try:
            outcomes[seed] = command(store, seed, overwrite).run()["complete"]
        except OutputError as error:
            outcomes[seed] = str(error)

    with no_ray(make_shards):
        first = threading.Thread(target=run, args=(1, False))
        first.start()
        assert reached.wait(60)
        run(2, True)
        first.join(60)
    assert outcomes[2] is True
    assert outcomes[1] is True or "another job has taken this place (--overwrite)" in outcomes[1]
    entries = Manifest(store).entries()
    expected = [sha256(sample_format().files(picture(2, shard))[0][1]) for shard in range(PLAN.num_shards)]
    assert [entry.files[0].sha256 for entry in entries] == expected
    assert not verify(store).problems and store.exists(layout.SUCCESS)
    assert len(store.list_files("shards")) == PLAN.num_shards
