"""Processes that stop, or die at every attempt: a run goes on, or leaves their shards out, within bounded time."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs.pipeline import Pipeline
from jobs.pools import Pool
from jobs.running import make_shards
from jobs.start_up import StartUp
from jobs.watchdog import Limits
from tandem.errors import JobError
from workers.shards import PixelShard, ShardPlan, ShardRows

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]
QUICK = Limits(warn=(1.0, 1.0), replace=(3.0, 1.0), warn_first=1.0, replace_store=3.0)


def run(stage: type, sink: object, count: int, max_failed: int, limits: Limits = QUICK) -> dict:
    def read(shard: int) -> ShardRows:
        return ShardRows(shard=shard, index=np.array([shard]), label=np.zeros(1, np.int32))

    pipeline = Pipeline(ShardPlan(count, 1), read, [Pool("draft", ShardRows, [stage], 1)], sink, 0, 1, limits)
    return make_shards(pipeline, list(range(count)), count, max_failed=max_failed, start_up=StartUp())


def stages(folder: Path) -> tuple[type, object]:
    """A stage that stops at shard 1 the first time and dies at every attempt on shard 2; a sink alike with 3 and 4."""
    # in here, so that they travel to the workers, which have no tests

    def misbehave(shard: int, stops: int, dies: int) -> None:
        first = folder / f"first{shard}"
        if shard == stops and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if shard == dies:
            with (folder / f"attempts{shard}").open("a") as file:
                file.write("x")
            print(f"no device answers to shard {shard}", file=sys.stderr, flush=True)
            os._exit(7)

    class Draft:
        name = "draft"

        def __call__(self, shard: ShardRows) -> PixelShard:
            misbehave(shard.shard, stops=1, dies=2)
            return PixelShard.of(shard, pixels=np.full((1, 16, 16, 3), shard.shard, np.uint8))

    class Sink:
        takes = PixelShard

        def __call__(self, shard: PixelShard, spans: list) -> None:
            misbehave(shard.shard, stops=3, dies=4)

    return Draft, Sink()


def test_what_stops_is_replaced_and_what_dies_at_every_attempt_is_left_out(tmp_path, capsys):
    began = time.monotonic()
    summary = run(*stages(tmp_path), count=8, max_failed=2)
    took, lines = time.monotonic() - began, capsys.readouterr().err.splitlines()
    assert summary["images"] == 6 and sorted(summary["failed_shards"]) == [2, 4]
    for shard, stage in ((2, "draft"), (4, "write")):
        cause = summary["failed_shards"][shard]
        assert cause.startswith(f"{stage}: 3 processes died at it one after the other, the last one (process ")
        assert cause.endswith(f"in {stage}; its last lines: no device answers to shard {shard}")
        assert (tmp_path / f"attempts{shard}").read_text() == "xxx"
        assert any(f"warning: {stage}: a process died at shard {shard}: 1 of 3 times" in line for line in lines)
    for shard, stage in ((1, "draft"), (3, "write")):
        said = [line for line in lines if line.startswith(f"warning: shard {shard} has been in {stage} for ")]
        assert len(said) == 2 and said[1].endswith(": the process is replaced"), said
    with capsys.disabled():
        print(f"\n8 shards, two that stop their process and two that end it at every attempt: {took:.0f} s")
    assert took < 120


def test_an_actor_that_dies_while_it_loads_ends_the_run_with_its_last_lines():
    class Deadly:
        name = "draft"

        def __init__(self) -> None:
            print("segmentation fault in the driver", file=sys.stderr, flush=True)
            os._exit(11)

    line = "draft: an actor does not start: 3 processes died at it .* in loading; its last lines: segmentation fault"
    with pytest.raises(JobError, match=line):
        run(Deadly, stages(Path())[1], count=2, max_failed=0)
