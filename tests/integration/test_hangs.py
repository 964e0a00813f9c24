"""Processes that stop, or die at every attempt: a run goes on, or leaves their shards out, within bounded time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray

from support.runs import committed, digests, job, processes, start, wait_until
from tandem.errors import JobError
from tandem_jobs.bench.bench_pipeline import Rows
from tandem_jobs.cli import main
from tandem_jobs.run.make_shards import make_shards
from tandem_jobs.run.pipeline import Pipeline
from tandem_jobs.run.pools import ActorPool
from tandem_jobs.run.start_up import StartUp
from tandem_jobs.run.watchdog import WatchdogLimits
from tandem_workers.dataset.shards import PixelShard, ShardPlan, ShardRows
from tandem_workers.stages.ray_data import Stage

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]
SERVERS = Path(ray.__file__).parent / "core" / "src" / "ray"
QUICK = WatchdogLimits(warn=(1.0, 1.0), replace=(3.0, 1.0), warn_first=1.0, replace_first=3.0, replace_store=3.0)


def run(stage: Stage, sink: object, count: int, max_failed: int, limits: WatchdogLimits = QUICK) -> dict:
    plan = ShardPlan(count, 1)
    pipeline = Pipeline(plan, [ActorPool("draft", ShardRows, [Rows(plan), stage], 1)], sink, 0, 1, limits)
    return make_shards(pipeline, list(range(count)), count, max_failed=max_failed, start_up=StartUp())


def stages(folder: Path) -> tuple[Stage, object]:
    """A stage that is stopped at shard 1 the first time and dies at every attempt on shard 2; a sink that hangs at
    shard 3 and dies at 4."""
    # in here, so that they travel to the workers, which have no tests

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def hang() -> None:
        time.sleep(3600)

    def misbehave(shard: int, hangs: int, how: Callable[[], None], dies: int) -> None:
        first = folder / f"first{shard}"
        if shard == hangs and not first.exists():
            first.touch()
            how()
        if shard == dies:
            with (folder / f"attempts{shard}").open("a") as file:
                file.write("x")
            print(f"no device answers to shard {shard}", file=sys.stderr, flush=True)
            os._exit(7)

    class Draft:
        name = "draft"

        def load(self) -> Stage:
            return self

        def __call__(self, shard: ShardRows) -> PixelShard:
            misbehave(shard.shard, 1, stop, dies=2)
            return PixelShard.of(shard, pixels=np.full((1, 16, 16, 3), shard.shard, np.uint8))

    class Sink:
        takes = PixelShard

        def __call__(self, shard: PixelShard, spans: list) -> None:
            misbehave(shard.shard, 3, hang, dies=4)

    return Draft(), Sink()


def test_what_stops_is_replaced_and_what_dies_at_every_attempt_is_left_out(tmp_path, measured, capsys):
    began = time.monotonic()
    summary = run(*stages(tmp_path), count=8, max_failed=2)
    took, lines = time.monotonic() - began, capsys.readouterr().err.splitlines()
    assert summary["images"] == 6 and sorted(summary["failed_shards"]) == [2, 4]
    for shard, stage in ((2, "draft"), (4, "write")):
        cause = summary["failed_shards"][shard]
        assert cause.startswith(f"{stage}: 3 processes died at it one after the other, the last one (process ")
        # a name that Ray wrote in between can come in two pieces, of which the second looks like output
        assert f"in {stage}; its last lines: " in cause and cause.endswith(f" no device answers to shard {shard}")
        assert (tmp_path / f"attempts{shard}").read_text() == "xxx"
    # Ray's output comes from a thread of its own: it may stand before or behind a line of ours, without a line's end
    overdue = {n: [line for line in lines if f"warning: shard {n} has been in " in line] for n in (1, 3)}
    replaced = ": the process is replaced"
    assert all(" in draft for " in line for line in overdue[1]), lines
    # whichever comes first on a busy machine: a look for stopped workers, or the end of its time
    swept = any("warning: worker process " in line and "was stopped (SIGSTOP)" in line for line in lines)
    assert swept or replaced in overdue[1][-1], lines
    assert any("warning: draft: a process died at shard 2: " in line for line in lines), lines
    assert " in write for " in overdue[3][0] and replaced in overdue[3][-1], lines
    measured(f"8 shards, two that hang at first and two that end their process at every attempt: {took:.0f} s")
    assert took < 120


def test_an_actor_that_dies_while_it_loads_ends_the_run_with_its_last_lines():
    class Deadly:
        name = "draft"

        def load(self) -> Stage:
            print("segmentation fault in the driver", file=sys.stderr, flush=True)
            os._exit(11)

    line = "draft: an actor does not start: 3 processes died at it .* in loading; its last lines: segmentation fault"
    with pytest.raises(JobError, match=line):
        run(Deadly(), stages(Path())[1], count=2, max_failed=0)


@pytest.mark.parametrize(("program", "part"), [("raylet/raylet", "raylet"), ("gcs/gcs_server", "GCS")])
def test_a_part_of_ray_that_is_killed_ends_the_run_with_a_line_and_the_same_command_goes_on(
    program, part, undisturbed, tiny_models, out, tmp_path
):
    argv, log = job(tiny_models, out), tmp_path / "log"
    running = start(argv, log)
    try:
        wait_until(lambda: committed(out) >= 3, "three shards")
        (pid,) = processes(str(SERVERS / program), running.pid)
        os.kill(pid, signal.SIGKILL)
        assert running.wait(timeout=15) == 1
    finally:
        running.kill()
    lines = [line for line in log.read_text().splitlines() if line.startswith(("error: ", "hint: ", "Traceback"))]
    assert lines[0] == f"error: Ray's {part} on this machine (process {pid}) has ended"
    assert lines[1].startswith("hint: committed shards are kept, and the same command resumes from them; Ray's logs")
    assert len(lines) == 2
    assert main(argv) == 0
    assert digests(out) == undisturbed
