"""CPU time of processes by their kind."""

import os
import subprocess
import sys

import pytest

from tandem_jobs.bench.cpu_seconds import DRIVER, cpu_seconds, ms_per_shard, process_kind


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (b"ray::MapWorker(MapBatches(draft)).submit\0", "draft"),
        (b"ray::MapWorker(MapBatches(draft + refine))\0", "draft + refine"),
        (b"ray::MapBatches(write_shard)\0", "tasks"),
        (b"ray::IDLE\0", "tasks"),
        (b"ray::_StatsActor.update_execution_metrics\0", "_StatsActor"),
        (b"/venv/lib/python3.11/site-packages/ray/raylet\0--name=x.py\0", "raylet"),
        (b"/venv/bin/python\0-u\0/venv/ray/_private/log_monitor.py\0--logs-dir=x\0", "log_monitor"),
        (b"\0", ""),
    ],
)
def test_processes_of_ray_are_told_by_pool_task_or_program(command_line, expected):
    assert process_kind(command_line) == expected


def test_descendants_are_counted_and_other_processes_are_not():
    work = "sum(range(3_000_000)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        found = cpu_seconds()
        child.communicate(b"\n")
    assert found[os.getpid()][0] == DRIVER
    assert found[child.pid][1] > 0
    assert os.getppid() not in found


def test_time_is_told_for_each_shard_the_most_first():
    before = {1: (DRIVER, 1.0), 2: ("draft", 5.0), 3: ("tasks", 1.0)}
    after = {1: (DRIVER, 1.5), 2: ("draft", 7.0), 4: ("draft", 0.5), 5: ("tasks", 0.1)}
    assert list(ms_per_shard(before, after, shards=10).items()) == [("draft", 250.0), (DRIVER, 50.0), ("tasks", 10.0)]
