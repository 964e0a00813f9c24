"""Queues between stages stay short, and the driver stays small, however many rows go through."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tandem.class_names import ClassNames
from tandem.errors import TandemWarning
from tandem_jobs.bench.bench_pipeline import Consume, Rows, Simulated
from tandem_jobs.cli import main
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.labels.labels import ReadLabels
from tandem_jobs.run.make_shards import make_shards
from tandem_jobs.run.pipeline import Pipeline
from tandem_jobs.run.pools import ActorPool
from tandem_jobs.run.start_up import StartUp
from tandem_workers.dataset.shards import PixelShard, PrefixShard, ShardPlan, ShardRows
from tandem_workers.stages.ray_data import Stage

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL = ("--batch", "4", "--image-size", "16", "--shards", "40", "--warm-up", "5", "--window", "30")


def bench(capsys, *argv: str) -> dict:
    assert main(["bench", "pipeline", *SMALL, *argv]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_drafts_do_not_pile_up_before_slow_refiners(capsys):
    result = bench(capsys, "--drafters", "3", "--refiners", "1", "--draft-s", "0.01", "--refine-s", "0.2")
    assert result["simulated"] is True
    assert result["most_waiting_shards"]["refine"] <= 3 * 2 + 2
    assert result["busy"]["draft"] < 0.3


def test_slow_drafters_leave_refiners_idle_and_nothing_waits(capsys):
    result = bench(capsys, "--drafters", "1", "--refiners", "2", "--draft-s", "0.2", "--refine-s", "0.01")
    assert result["most_waiting_shards"]["refine"] <= 1 * 2 + 2  # while refiners are not there yet, as above
    assert max(result["backlog_shards"]) <= 2
    assert result["busy"]["refine"] < 0.3


def test_drafts_do_not_pile_up_while_no_refiner_is_there():
    class Late:  # in here, so that it travels to the workers, which have no tests
        name = "refine"

        def load(self) -> Stage:
            time.sleep(6)
            return self

        def __call__(self, shard: PrefixShard) -> PixelShard:
            return PixelShard.of(shard, pixels=np.full((1, 16, 16, 3), shard.shard, np.uint8))

    plan = ShardPlan(24, 1)
    draft = Simulated("draft", 0.02, jitter=0.0, batch=1, prefix_tokens=20, image_size=16)
    pools = [ActorPool("draft", ShardRows, [Rows(plan), draft], 1), ActorPool("refine", PrefixShard, [Late()], 1)]
    summary = make_shards(
        Pipeline(plan, pools, Consume(), 1, 768), list(range(24)), 24, max_failed=0, start_up=StartUp()
    )
    assert summary["images"] == 24
    assert summary["most_waiting_shards"]["refine"] <= 2 + 2


def test_what_actors_warn_of_is_said_once_and_is_in_the_summary(capsys):
    class Warner:
        name = "refine"

        def load(self) -> Stage:
            return self

        def __call__(self, shard: PrefixShard) -> PixelShard:
            warnings.warn("a batch was halved", TandemWarning, stacklevel=1)
            return PixelShard.of(shard, pixels=np.full((1, 16, 16, 3), shard.shard, np.uint8))

    plan = ShardPlan(6, 1)
    draft = Simulated("draft", 0.01, jitter=0.0, batch=1, prefix_tokens=20, image_size=16)
    pools = [ActorPool("draft", ShardRows, [Rows(plan), draft], 1), ActorPool("refine", PrefixShard, [Warner()], 2)]
    pipeline = Pipeline(plan, pools, Consume(), 1, 768)
    summary = make_shards(pipeline, list(range(6)), 6, max_failed=0, start_up=StartUp())
    assert summary["warnings"] == ["a batch was halved"]
    assert capsys.readouterr().err.count("warning: a batch was halved") == 1


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
def test_a_hundred_thousand_label_rows_stream_through_a_small_driver(tmp_path, measured):
    count = 100_000
    table = pa.table({"label": [i % 12 for i in range(count)], "note": [f"row {i}" for i in range(count)]})
    pq.write_table(table, tmp_path / "labels.parquet")
    before = resident_bytes()
    rows = read_label_file(str(tmp_path / "labels.parquet"), ClassNames.numbered(12))
    plan = ShardPlan(len(rows), 512)
    draft, refine = (Simulated(name, 0.02, 0.0, 512, 20, 16) for name in ("draft", "refine"))
    read = ReadLabels(ray.put(rows), plan)
    pools = [ActorPool("draft", ShardRows, [read, draft], 1), ActorPool("refine", PrefixShard, [refine], 1)]
    pipeline = Pipeline(plan, pools, Consume(), 1, 512 * 3 * 16**2)
    summary = make_shards(pipeline, list(range(plan.num_shards)), count, max_failed=0, start_up=StartUp())
    grown = resident_bytes() - before
    measured(f"{count} rows: the driver grew by {grown / 1e6:.0f} MB in {summary['working_s']:.0f} s")
    assert summary["images"] == count
    assert grown < 200e6
