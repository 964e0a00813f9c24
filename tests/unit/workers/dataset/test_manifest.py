"""The manifest: entries describe their shards, resume lists them, and _SUCCESS comes last."""

import json

import numpy as np
import pytest

from support.sample_shards import PLAN, encoded_shard, sample_format, sha256
from tandem.errors import JobError
from tandem_workers.dataset.closing import close_dataset
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import ShardPlan


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
    of_another_gpu = fmt.files(encoded_shard(0, PLAN, noise=2))[0]
    store.put_once(*of_another_gpu)
    entry = store_shard(store, manifest, encoded_shard(0, PLAN), fmt, PLAN)
    assert [file.path for file in entry.files] == store.list_files("shards") == ["shards/00000.tar"]
    assert entry.files[0].sha256 == sha256(of_another_gpu[1])
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
    assert Manifest(store, 0).committed() == {0, 12, 123456}


def test_a_broken_entry_is_named(store):
    store.put_once("manifest/00003.json", b"{}")
    with pytest.raises(JobError, match=r"manifest/00003.json in .* is not a manifest entry"):
        Manifest(store).entries()


def test_success_comes_last_and_once(store):
    manifest, fmt = Manifest(store), sample_format()
    store_shard(store, manifest, encoded_shard(1, PLAN), fmt, PLAN)
    with pytest.raises(JobError, match="2 of 3 shards are missing: 0, 2"):
        close_dataset(manifest, PLAN.num_shards)
    assert not store.exists("_SUCCESS")
    for shard in (0, 2):
        store_shard(store, manifest, encoded_shard(shard, PLAN), fmt, PLAN)
    close_dataset(manifest, PLAN.num_shards)
    totals = manifest.totals()
    assert (totals.shards, totals.rows, totals.labels) == (3, 10, {0: 3, 1: 3, 3: 2, 5: 2})
    assert totals.size_bytes == sum(len(store.read(f"shards/0000{i}.tar")) for i in range(3))
    assert totals.seconds["draft"] == 1.5
    written = store.read("_SUCCESS")
    assert json.loads(written)["rows"] == 10
    assert json.loads(written) | {"epoch": 0, "files": {}} == json.loads(written)
    close_dataset(manifest, PLAN.num_shards)
    assert store.read("_SUCCESS") == written


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
