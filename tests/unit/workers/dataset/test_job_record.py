"""The record of a job: the same job resumes, another is refused, --overwrite removes only the job's own files."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.sample_shards import PLAN, encoded_shard, sample_dataset, sample_format
from tandem.config import SamplingConfig
from tandem.errors import OutputError
from tandem_workers.dataset.claim import diff_identity, open_job
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.identity import decoding_identity
from tandem_workers.dataset.job_record import read_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.models.decode_settings import DecodeSettings

IDENTITY = {"seed": 1, "sampling": {"cfg": 1.5, "top_k": 600}, "patch_nums": (1, 2, 3), "labels": "a" * 64}


def test_the_same_job_resumes(store):
    first = open_job(store, IDENTITY, {"created": "first run"})
    assert first.committed == frozenset()
    store_shard(store, Manifest(store), encoded_shard(2, PLAN), sample_format(), PLAN)
    again = open_job(store, IDENTITY, {"created": "second run"})
    assert again.committed == {2} and again.info == {"created": "first run"}
    assert read_job(store) == {
        "identity": {**IDENTITY, "patch_nums": [1, 2, 3]},
        "info": {"created": "first run"},
        "epoch": 0,
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
    assert "resume with --class-names numbers" in caught.value.hint
    with pytest.raises(OutputError) as caught:
        open_job(store, {**IDENTITY, "seed": 2, "class_names_sha256": "c" * 64})
    assert "--class-names" not in caught.value.hint


@pytest.mark.parametrize(
    ("there", "here"), [({"compile": True}, {}), ({"compile": True, "int8": True}, {"int8": True})]
)
def test_a_job_with_a_removed_option_is_named_as_such(store, there, here):
    plain = decoding_identity(DecodeSettings(0, 2, SamplingConfig(), 4, "float32", 1))
    open_job(store, {**IDENTITY, "decoding": plain | {"how": there}})
    with pytest.raises(OutputError, match=r"decoding\.how(\.compile)?: there .*, here nothing") as caught:
        open_job(store, {**IDENTITY, "decoding": plain | ({"how": here} if here else {})})
    assert caught.value.hint.startswith("it was made with --compile, which was removed")


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
        with pytest.raises(OutputError, match=r"job.json in .* is damaged, or from a newer version: unexpected .name"):
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
    assert store.list_files() == sorted([*foreign, "job.json", "overwrites/00001.json"])
    assert store.read("job.json") == store.read("overwrites/00001.json")
    assert open_job(store, {"format": "another"}).identity == job.identity


def test_overwrite_cut_short_leaves_the_place_to_the_new_job(tmp_path, monkeypatch):
    store = sample_dataset(tmp_path, "webdataset")
    removed = []

    def remove_four(self, path):
        if len(removed) == 4:
            raise KeyboardInterrupt
        removed.append(path)
        (self.root / path).unlink(missing_ok=True)

    monkeypatch.setattr(type(store), "remove", remove_four)
    with pytest.raises(KeyboardInterrupt):
        open_job(store, {"format": "another"}, overwrite=True)
    assert removed == ["_SUCCESS", "README.md", "contact_sheet.png", "images/metadata.parquet"]
    with pytest.raises(OutputError, match="holds another job"):
        open_job(store, {"format": "webdataset"})
    assert open_job(store, {"format": "another"}).committed == frozenset()


def test_the_root_of_a_fresh_file_system_counts_as_empty(store):
    """ext4 has a folder lost+found there, which only root may read."""
    (store.root / "lost+found").mkdir(parents=True, mode=0o000)
    assert store.list_files() == []
    assert open_job(store, {"seed": 1}, {}).committed == frozenset()
