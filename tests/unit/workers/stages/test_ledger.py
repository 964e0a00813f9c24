"""Which process works on which shard, and how deaths are counted, with a fake GCS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.exceptions import RayError, RaySystemError, RpcError

from tandem.errors import JobError, OutputError
from tandem_jobs.run.pipeline import write_shard
from tandem_workers.dataset.shards import FailedShard, PixelShard, ShardRows
from tandem_workers.stages import ledger, ray_data
from tandem_workers.stages.ledger import (
    MAX_DEATHS,
    WORKER,
    Entry,
    Ledger,
    TaskAttempt,
    end_process,
    end_stopped,
    last_lines,
    read_entries,
)
from tandem_workers.stages.ray_data import StageActor, from_row, to_row

HERE, THERE = "aa" * 28, "bb" * 28
ROWS = ShardRows(shard=7, index=np.arange(2), label=np.zeros(2, np.int32))


class Gcs:
    """As much of Ray's GCS as the ledger uses."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.nodes = {HERE: True, THERE: True}
        self.answers = True
        self.error: type[RayError] = RpcError

    def _check(self) -> None:
        if not self.answers:
            raise self.error("deadline exceeded")

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None:
        self._check()
        return self.values.get(key)

    def internal_kv_put(self, key: bytes, value: bytes, overwrite: bool, namespace: bytes, timeout: float) -> None:
        self._check()
        self.values[key] = value

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes, timeout: float) -> None:
        self._check()
        for name in [name for name in self.values if name == key or (by_prefix and name.startswith(key))]:
            del self.values[name]

    def internal_kv_keys(self, prefix: bytes, namespace: bytes, timeout: float) -> list[bytes]:
        self._check()
        return [key for key in self.values if key.startswith(prefix)]

    def internal_kv_multi_get(self, keys: list[bytes], namespace: bytes, timeout: float) -> dict[bytes, bytes]:
        return {key: self.values[key] for key in keys}

    def get_all_node_info(self, timeout: float) -> dict[str, Any]:
        self._check()
        states = {True: GcsNodeInfo.ALIVE, False: GcsNodeInfo.DEAD}
        return {
            node: SimpleNamespace(node_id=bytes.fromhex(node), state=states[alive])
            for node, alive in self.nodes.items()
        }


@pytest.fixture
def gcs(monkeypatch, tmp_path) -> Gcs:
    server = Gcs()
    monkeypatch.setattr(ledger, "registered", set())
    monkeypatch.setattr(ledger, "gcs_client", lambda: server)
    monkeypatch.setattr(ledger, "this_node", lambda: HERE)
    monkeypatch.setattr(ledger, "actor_id", lambda: "actor1")
    monkeypatch.setattr(ledger, "logs_folder", lambda: tmp_path)
    monkeypatch.setattr(ray_data, "replica_name", lambda: "aaaaaaaa/gpu0")
    monkeypatch.setattr("tandem_jobs.run.pipeline.replica_name", lambda: "aaaaaaaa/pid1")
    return server


def at_work(gcs: Gcs) -> list[Entry]:
    """The entries of tasks."""
    return [entry for entry in read_entries(gcs, "run").values() if not entry.task.startswith(WORKER)]


@pytest.fixture
def process(monkeypatch) -> Callable[[int], None]:
    """From now on this is the process with that id."""
    return lambda pid: monkeypatch.setattr(ledger.os, "getpid", lambda: pid)


class Refine:
    name = "refine"

    def load(self) -> Refine:
        return self

    def __call__(self, shard: ShardRows) -> PixelShard:
        raise AssertionError("must not be tried once more")


def die(pid: int, pool: str, task: str, stage: str = "draft") -> None:
    """The entry that a process leaves when it dies on the task."""
    TaskAttempt("run", Entry(pool, task, "", "aaaaaaaa/gpu0", HERE, pid)).enter(stage)


def test_an_entry_stands_while_a_shard_is_worked_on_and_names_its_stage(gcs, process):
    process(11)
    seen = []

    class Draft:
        name = "draft"

        def load(self) -> Draft:
            return self

        def __call__(self, shard: ShardRows) -> ShardRows:
            seen.extend(at_work(gcs))
            return shard

    actor = StageActor(ShardRows, [Draft()], ledger=Ledger("run", "draft + refine"))
    assert at_work(gcs) == [], "it has loaded"
    actor(to_row(ROWS, []))
    assert [(e.pool, e.task, e.stage, e.replica, e.node, e.pid) for e in seen] == [
        ("draft + refine", "shard 7", "draft", "aaaaaaaa/gpu0", HERE, 11)
    ]
    assert at_work(gcs) == []
    (worker,) = read_entries(gcs, "run").values()
    assert (worker.pool, worker.node, worker.pid) == ("draft + refine", HERE, 11), "it stands between shards too"


def test_a_shard_at_which_processes_die_counts_as_failed_with_the_last_lines(gcs, process, tmp_path):
    refine = Ledger("run", "refine")
    die(0, "refine", "shard 8", "refine")
    for pid in range(MAX_DEATHS):
        die(pid, "refine", "shard 7", "refine")
    (tmp_path / "worker-x-ffffffff-2.err").write_text(":job_id:01\nloading\n\nterminate called after CUDA error\n")
    process(99)
    actor = StageActor(ShardRows, [Refine()], ledger=refine)
    failed = from_row(actor(to_row(ROWS, [])), FailedShard)[0]
    assert failed.cause == (
        "refine: 3 processes died at it one after the other, the last one (process 2 of aaaaaaaa/gpu0) in refine; "
        "its last lines: loading | terminate called after CUDA error"
    )
    assert [entry.task for entry in at_work(gcs)] == ["shard 8"], "the next run tries it again"
    with refine.attempt("shard 8", "aaaaaaaa/gpu0") as attempt:
        assert (attempt.given_up, attempt.entry.deaths) == ("", (HERE,))


def test_deaths_with_their_node_and_calls_that_are_repeated_do_not_count(gcs, process):
    draft = Ledger("run", "draft")
    for pid in range(MAX_DEATHS):
        die(pid, "draft", "shard 7")
    gcs.nodes[HERE] = False
    process(9)
    with draft.attempt("shard 7", "bbbbbbbb/gpu0") as attempt:
        assert (attempt.given_up, attempt.entry.deaths) == ("", ())
    die(9, "draft", "shard 8")
    with draft.attempt("shard 8", "bbbbbbbb/gpu0") as attempt:
        assert attempt.entry.deaths == (), "the same process takes it up again"


def test_an_actor_that_dies_while_it_loads_is_not_started_for_ever(gcs, process, tmp_path):
    draft = Ledger("run", "draft")

    class Deadly(Refine):
        def load(self) -> Refine:
            raise AssertionError("must not be tried once more")

    for pid in range(MAX_DEATHS):
        die(pid, "draft", "loading actor1", "loading")
    process(9)
    (tmp_path / "worker-x-ffffffff-2.out").write_text("fatal\n")
    line = "draft: an actor does not start: 3 processes died at it .* in loading; its last lines: fatal"
    with pytest.raises(JobError, match=line):
        StageActor(ShardRows, [Deadly()], ledger=draft)


def test_a_writer_that_dies_at_a_shard_is_bounded_too_and_errors_are_no_deaths(gcs, process):
    write = Ledger("run", "write")

    class Full:
        takes = ShardRows

        def __call__(self, shard: Any, spans: list[Any]) -> None:
            raise OutputError("disk full")

    for _ in range(MAX_DEATHS + 1):
        with pytest.raises(OutputError):
            write_shard(to_row(ROWS, []), Full(), write)
    for pid in range(MAX_DEATHS):
        die(pid, "write", "shard 7", "write")
    process(9)
    failed = from_row(write_shard(to_row(ROWS, []), Full(), write), FailedShard)[0]
    assert failed.cause.startswith("write: 3 processes died at it")


@pytest.mark.parametrize("error", [RpcError, RaySystemError])
def test_a_gcs_that_does_not_answer_fails_no_shard(gcs, process, error):
    gcs.answers, gcs.error = False, error
    with Ledger("run", "draft").attempt("shard 7", "aaaaaaaa/gpu0") as attempt:
        attempt.enter("draft")
    assert not attempt.given_up


def test_last_lines_are_those_of_stderr_or_else_of_stdout(tmp_path):
    assert last_lines(tmp_path, 5) == []
    (tmp_path / "worker-a-01-5.out").write_text("".join(f"line {i}\n" for i in range(10_000)))
    (tmp_path / "worker-a-01-55.err").write_text("another process\n")
    assert last_lines(tmp_path, 5) == [f"line {i}" for i in range(9_995, 10_000)]
    (tmp_path / "worker-a-01-5.err").write_bytes(b"\xff fatal\n")
    assert last_lines(tmp_path, 5) == ["\ufffd fatal"]


@contextmanager
def started(name: str) -> Iterator[subprocess.Popen]:
    """A process of that name, once it runs."""
    argv = [name, "-c", "print(flush=True); input()"]
    process = subprocess.Popen(argv, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def test_workers_that_are_stopped_are_ended_and_no_others():
    with started("ray::a") as stopped, started("ray::b") as running:
        stopped.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        assert end_stopped([stopped.pid, running.pid]) == [stopped.pid]
        assert stopped.wait(timeout=10) == -signal.SIGKILL
        assert running.poll() is None
        assert end_stopped([stopped.pid]) == []  # it is gone


def test_a_stopped_process_that_is_no_worker_is_left_alone_and_not_named():
    with started("python") as other:
        other.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
        assert end_stopped([other.pid]) == []
        assert other.poll() is None


def test_only_workers_are_ended():
    with started("ray::x") as worker, started("python") as other:
        for process in (worker, other):
            end_process(process.pid)
        assert worker.wait(timeout=10) == -signal.SIGKILL
        assert other.poll() is None
    end_process(worker.pid)  # it is gone
