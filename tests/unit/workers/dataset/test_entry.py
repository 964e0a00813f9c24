"""Manifest entries as files: what is written is read back, and damage shows."""

import json

import pytest

from support.sample_shards import ENTRY, PLAN, encoded_shard, sample_format
from tandem.errors import JobError, OutputError
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.job_record import read_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.storage.places import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "out"))


def test_flips_in_records_are_found(store):
    """In an entry and in job.json."""
    open_job(store, {"seed": 1}, {"command": "tandem generate"})
    store_shard(store, Manifest(store), encoded_shard(1, PLAN), sample_format(), PLAN)
    for path in ("job.json", "manifest/00001.json"):
        data = store.read(path)
        for bit in range(0, len(data) * 8, 7):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            (store.root / path).write_bytes(damaged)
            with pytest.raises((JobError, OutputError), match=f"{path} in .* is ") as caught:
                read_job(store) if path == "job.json" else Manifest(store, 0).entry(1)
            assert "tandem verify --repair" in caught.value.hint


def test_entries_of_older_versions_have_no_seal():
    assert ManifestEntry.from_json(json.dumps(ENTRY).encode()).labels == {5: 1}


@pytest.mark.parametrize(
    "change",
    [
        {"shard": 4},
        {"rows": "1"},
        {"rows": -1},
        {"rows": True},
        {"size_bytes": 1.5},
        {"labels": {"x": 1}},
        {"labels": {"5": "1"}},
        {"labels": []},
        {"labels": None},
        {"files": None},
        {"files": []},
        {"files": [1]},
        {"files": [{"path": "shards/00003.tar"}]},
        {"files": [{"path": "../../etc/passwd", "size_bytes": 1, "sha256": "a" * 64}]},
        {"files": [{"path": "shards/00003.tar", "size_bytes": 1, "sha256": "short"}]},
        {"files": [{"path": f"shards/{3:0300d}.tar", "size_bytes": 1, "sha256": "a" * 64}]},
        {"files": [{"path": "job.json", "size_bytes": 1, "sha256": "a" * 64}]},
        {"files": [{"path": 5, "size_bytes": 1, "sha256": "a" * 64}]},
        {"seconds": {"draft": "long"}},
        {"seconds": [1]},
        {"more": 1},
    ],
)
def test_entries_of_other_content_are_named(store, change):
    store.put_once("manifest/00003.json", json.dumps(ENTRY | change).encode())
    with pytest.raises(JobError, match=r"manifest/00003\.json in .* is "):
        Manifest(store).entry(3)


def test_an_entry_lacks_nothing(store):
    for name in ENTRY:
        store.replace("manifest/00003.json", json.dumps({k: v for k, v in ENTRY.items() if k != name}).encode())
        with pytest.raises(JobError, match="is not a manifest entry"):
            Manifest(store).entry(3)
