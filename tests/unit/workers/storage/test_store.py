"""Files are put once: one writer of many wins, and a failed write leaves nothing behind."""

import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.sample_shards import PLAN, encoded_shard, sample_format, sha256
from tandem.errors import InputError, OutputError
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.job_record import check_epoch
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import TEMPORARY, TEMPORARY_LIFE_S


def temporary_files(store) -> list:
    return list((store.root / TEMPORARY).glob("*"))


def test_put_tells_size_and_hash_and_never_overwrites(store):
    first = store.put_once("shards/00000.tar", b"first")
    assert (first.path, first.size_bytes, first.sha256, first.created) == (
        "shards/00000.tar",
        5,
        sha256(b"first"),
        True,
    )
    second = store.put_once("shards/00000.tar", b"the second writer")
    assert (second.size_bytes, second.sha256, second.created) == (5, sha256(b"first"), False)
    assert store.read("shards/00000.tar") == b"first"
    assert temporary_files(store) == []


def race(root: str, writer: int, start) -> tuple[bool, str]:
    data = bytes([writer]) * (200_000 + writer)
    start.wait()
    stored = open_store(root).put_once("shards/00000.tar", data)
    return stored.created, stored.sha256


def race_in_process(root, writer, start, results):
    results.put(race(root, writer, start))


def assert_one_winner(store, results):
    assert sum(created for created, _ in results) == 1
    assert {digest for _, digest in results} == {sha256(store.read("shards/00000.tar"))}
    assert temporary_files(store) == []


def test_of_racing_threads_one_wins_and_all_report_the_winner(store):
    start = threading.Barrier(8)
    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda writer: race(store.uri, writer, start), range(8)))
        assert_one_winner(store, results)
        store.remove("shards/00000.tar")


def test_of_racing_processes_one_wins_and_all_report_the_winner(store):
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(4), context.Queue()
    writers = [context.Process(target=race_in_process, args=(store.uri, i, start, results)) for i in range(4)]
    for writer in writers:
        writer.start()
    found = [results.get(timeout=30) for _ in writers]
    for writer in writers:
        writer.join()
    assert_one_winner(store, found)


def test_a_write_that_fails_half_way_leaves_nothing(store):
    """A limit on file size stands in for a full disk: the kernel cuts the write after 1 MiB."""
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from tandem_workers.storage.places import open_store\n"
        "from tandem.errors import OutputError\n"
        "store = open_store(sys.argv[1])\n"
        "store.put_once('shards/00000.tar', b'fits')\n"
        "try:\n"
        "    store.put_once('shards/00001.tar', bytes(3 << 20))\n"
        "except OutputError as error:\n"
        "    print(error); print(error.hint)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script, store.uri], capture_output=True, text=True, env=environment, timeout=60
    )
    assert "shards/00001.tar: File too large" in done.stdout, done.stderr
    assert "room" in done.stdout
    assert store.list_files() == ["shards/00000.tar"] and temporary_files(store) == []


def test_a_full_disk_does_not_commit_the_shard(store, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        store_shard(store, Manifest(store), encoded_shard(0, PLAN), sample_format(), PLAN)
    monkeypatch.undo()
    assert store.list_files() == [] and temporary_files(store) == []
    assert Manifest(store).committed() == frozenset()


def test_a_writer_killed_in_the_middle_leaves_only_a_temporary_file(store):
    script = (
        "import os, signal, sys\n"
        "from tandem_workers.storage import local_store, places\n"
        "local_store.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "places.open_store(sys.argv[1]).put_once('shards/00000.tar', bytes(100))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, store.uri], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert store.list_files() == [] and len(temporary_files(store)) == 1
    open_job(store, {"seed": 1})
    assert len(temporary_files(store)) == 1, "young: its writer may be alive"
    old = time.time() - TEMPORARY_LIFE_S - 60
    os.utime(temporary_files(store)[0], (old, old))
    open_job(store, {"seed": 1})
    assert not (store.root / TEMPORARY).exists()


def test_a_place_that_cannot_be_a_dataset(tmp_path):
    with pytest.raises(InputError, match="expected a local directory or s3://bucket/prefix, got 'gs://bucket/x'"):
        open_store("gs://bucket/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected a directory"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot write"):
        open_store(str(tmp_path / "file" / "below")).put_once("a", b"")


def test_a_store_survives_pickling_and_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("out")
    monkeypatch.chdir("/")
    pickle.loads(pickle.dumps(store)).put_once("a/b", b"1")
    assert (tmp_path / "out" / "a" / "b").read_bytes() == b"1"
    store.remove("a/b")
    store.remove("a/b")
    assert store.list_files() == [] and not (tmp_path / "out" / "a").exists()


def test_a_file_system_that_fails_is_a_line_where_names_are_asked_for(store, monkeypatch):
    """A stale NFS handle was a traceback, or counted as a failed shard."""

    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "is_file", stale)
    with pytest.raises(OutputError, match=r"cannot read .*overwrites/00001\.json: Stale file handle"):
        check_epoch(store, 0)
