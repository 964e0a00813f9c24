"""The commit protocol: put once, commit, resume, refuse, overwrite, and what a failed write leaves behind."""

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sample_shards import PLAN, encoded_shard, sample_dataset, sample_format

from tandem.errors import InputError, JobError, OutputError
from workers import layout
from workers.manifest import Manifest, diff_identity, open_job, store_shard
from workers.shards import ShardPlan
from workers.store import TEMPORARY, TEMPORARY_LIFE_S, open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "out"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def temporary_files(store) -> list:
    return list((store.root / TEMPORARY).glob("*"))


# ---- put once


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
        "from workers.store import open_store\n"
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
        "from workers import store\n"
        "store.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.open_store(sys.argv[1]).put_once('shards/00000.tar', bytes(100))\n"
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


# ---- manifest


@pytest.mark.parametrize("name", ["webdataset", "parquet", "folder"])
def test_an_entry_describes_its_shard(store, name):
    shard, manifest = encoded_shard(1, PLAN), Manifest(store)
    entry = store_shard(store, manifest, shard, sample_format(name), PLAN)
    assert (entry.shard, entry.rows, entry.first_index, entry.last_index) == (1, 4, 4, 7)
    assert entry.labels == {0: 1, 1: 1, 3: 1, 5: 1}
    assert len(entry.files) == {"webdataset": 1, "parquet": 1, "folder": 5}[name]
    for file in entry.files:
        data = store.read(file.path)
        assert (file.size_bytes, file.sha256) == (len(data), sha256(data))
    assert entry.size_bytes == sum(file.size_bytes for file in entry.files)
    assert set(entry.seconds) == {"draft", "encode", "store"}
    read = manifest.entry(1)
    assert read.to_json() == entry.to_json() and read.labels == entry.labels


def test_storing_twice_commits_what_stands(store):
    manifest, fmt = Manifest(store), sample_format()
    store.put_once(layout.shard_path(0, "tar"), b"from another replica")
    entry = store_shard(store, manifest, encoded_shard(0, PLAN), fmt, PLAN)
    assert entry.files[0].sha256 == sha256(b"from another replica")
    again = store_shard(store, manifest, encoded_shard(0, PLAN, noise=1), fmt, PLAN)
    assert again.to_json() == entry.to_json()
    other = manifest.commit_shard(0, entry.files, encoded_shard(0, PLAN), {"draft": 99.0})
    assert other.seconds == entry.seconds


def test_resume_lists_names_and_reads_no_bodies(store, monkeypatch):
    for name in ("00000.json", "00012.json", "123456.json"):
        store.put_once(f"manifest/{name}", b"not even JSON")
    for name in ("0001.json", "000013.json", "00002.json.tmp", ".00003.json", "x.json", "deep/00004.json"):
        store.put_once(f"manifest/{name}", b"")
    monkeypatch.setattr(type(store), "open", None)
    assert Manifest(store).committed() == {0, 12, 123456}


def test_a_broken_entry_is_named(store):
    store.put_once("manifest/00003.json", b"{}")
    with pytest.raises(JobError, match=r"manifest/00003.json in .* is not a manifest entry"):
        Manifest(store).entries()


def test_success_comes_last_and_once(store):
    manifest, fmt = Manifest(store), sample_format()
    store_shard(store, manifest, encoded_shard(1, PLAN), fmt, PLAN)
    with pytest.raises(JobError, match="2 of 3 shards are missing: 0, 2"):
        manifest.finish(PLAN.num_shards)
    assert not store.exists("_SUCCESS")
    for shard in (0, 2):
        store_shard(store, manifest, encoded_shard(shard, PLAN), fmt, PLAN)
    totals = manifest.finish(PLAN.num_shards)
    assert (totals.shards, totals.rows, totals.labels) == (3, 10, {0: 3, 1: 3, 3: 2, 5: 2})
    assert totals.size_bytes == sum(len(store.read(f"shards/0000{i}.tar")) for i in range(3))
    assert totals.seconds["draft"] == 1.5
    written = store.read("_SUCCESS")
    assert json.loads(written)["rows"] == 10
    assert manifest.finish(PLAN.num_shards) == totals and store.read("_SUCCESS") == written


def test_only_whole_shards_are_stored(store):
    manifest, fmt = Manifest(store), sample_format()
    merged = encoded_shard(0, ShardPlan(10, 8))
    with pytest.raises(JobError, match="expected 4 rows with index 0 to 3, got 8 rows with index 0 to 7") as caught:
        store_shard(store, manifest, merged, fmt, PLAN)
    assert "merged, split or lost" in caught.value.hint
    split = encoded_shard(0, ShardPlan(2, 2))
    with pytest.raises(JobError, match="got 2 rows"):
        store_shard(store, manifest, split, fmt, PLAN)
    swapped = encoded_shard(0, PLAN)
    swapped.index = np.array([0, 2, 1, 3])
    with pytest.raises(JobError, match="shard 0"):
        store_shard(store, manifest, swapped, fmt, PLAN)
    beyond = encoded_shard(0, PLAN)
    beyond.shard = 3
    with pytest.raises(JobError, match="shard 3: expected 0 rows"):
        store_shard(store, manifest, beyond, fmt, PLAN)
    assert store.list_files() == []


# ---- job record

IDENTITY = {"seed": 1, "sampling": {"cfg": 1.5, "top_k": 600}, "patch_nums": (1, 2, 3), "labels": "a" * 64}


def test_the_same_job_resumes(store):
    first = open_job(store, IDENTITY, {"created": "first run"})
    assert first.committed == frozenset()
    store_shard(store, Manifest(store), encoded_shard(2, PLAN), sample_format(), PLAN)
    again = open_job(store, IDENTITY, {"created": "second run"})
    assert again.committed == {2} and again.info == {"created": "first run"}
    assert json.loads(store.read("job.json")) == {
        "identity": {**IDENTITY, "patch_nums": [1, 2, 3]},
        "info": {"created": "first run"},
    }


def test_another_job_is_refused_with_the_fields_that_differ(store):
    open_job(store, IDENTITY)
    other = {"seed": 2, "sampling": {"cfg": 1.5}, "patch_nums": (1, 2, 4), "labels": "b" * 64, "codec": "png"}
    with pytest.raises(OutputError) as caught:
        open_job(store, other)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("holds another job. Fields that differ:")
    assert lines[1:3] == ["  seed: there 1, here 2", "  sampling.top_k: there 600, here nothing"]
    assert '  codec: there nothing, here "png"' in lines and max(map(len, lines[1:])) < 160
    assert "--overwrite" in caught.value.hint
    assert json.loads(store.read("job.json"))["identity"]["seed"] == 1


def test_a_job_of_before_class_names_were_known_says_how_to_go_on(store):
    open_job(store, IDENTITY)
    with pytest.raises(OutputError, match="class_names_sha256: there nothing, here") as caught:
        open_job(store, {**IDENTITY, "class_names_sha256": "c" * 64})
    assert "--class-names numbers goes on" in caught.value.hint
    with pytest.raises(OutputError) as caught:
        open_job(store, {**IDENTITY, "seed": 2, "class_names_sha256": "c" * 64})
    assert "--class-names" not in caught.value.hint


def test_diff_is_empty_for_equal_and_names_nested_fields():
    assert diff_identity({"a": {"b": [1]}}, {"a": {"b": [1]}}) == []
    assert diff_identity({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == [("a.b", 1, 2), ("c", None, 3)]
    assert diff_identity({"a": {"b": 1}}, {"a": None}) == [("a", {"b": 1}, None)]


def test_of_two_jobs_that_start_at_once_one_is_refused(store):
    def start(seed):
        try:
            return open_job(store, {"seed": seed}).identity["seed"]
        except OutputError as error:
            return None if "holds another job" in str(error) else str(error)

    for _ in range(30):
        with ThreadPoolExecutor(4) as pool:
            started = list(pool.map(start, range(4)))
        winner = json.loads(store.read("job.json"))["identity"]["seed"]
        assert [seed for seed in started if seed is not None] == [winner]
        store.remove("job.json")


def test_files_of_no_job_are_never_touched(store):
    store.put_once("shards/00000.tar", b"somebody's")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"not empty and holds no job \(files: 1, such as shards"):
            open_job(store, IDENTITY, overwrite=overwrite)
    store.put_once("job.json", b'{"name": "another tool"}')
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"job.json in .* is not a Tandem job: KeyError"):
            open_job(store, IDENTITY, overwrite=overwrite)
    assert store.read("shards/00000.tar") == b"somebody's"


@pytest.mark.parametrize("name", ["webdataset", "parquet", "folder"])
def test_overwrite_removes_the_job_and_leaves_foreign_files(tmp_path, name):
    store = sample_dataset(tmp_path, name)
    foreign = [
        "notes.txt",
        "shards/readme",
        "images/00001/mine.png",
        "manifest/old/00000.json",
        "rows/a.parquet",
    ]
    for path in foreign:
        store.put_once(path, b"mine")
    job = open_job(store, {"format": "another"}, overwrite=True)
    assert job.committed == frozenset() and job.identity == {"format": "another"}
    assert store.list_files() == sorted([*foreign, "job.json"])
    assert open_job(store, {"format": "another"}).identity == job.identity


def test_overwrite_cut_short_leaves_the_old_job_without_its_markers(tmp_path, monkeypatch):
    store = sample_dataset(tmp_path, "webdataset")
    removed = []

    def remove_four(self, path):
        if len(removed) == 4:
            raise KeyboardInterrupt
        removed.append(path)
        (self.root / path).unlink()

    monkeypatch.setattr(type(store), "remove", remove_four)
    with pytest.raises(KeyboardInterrupt):
        open_job(store, {"format": "another"}, overwrite=True)
    assert removed == ["_SUCCESS", *[f"manifest/0000{i}.json" for i in range(3)]]
    assert open_job(store, {"format": "webdataset"}).committed == frozenset()


def test_the_root_of_a_fresh_file_system_counts_as_empty(store):
    """ext4 has a folder lost+found there, which only root may read."""
    (store.root / "lost+found").mkdir(parents=True, mode=0o000)
    assert store.list_files() == []
    assert open_job(store, {"seed": 1}, {}).committed == frozenset()
