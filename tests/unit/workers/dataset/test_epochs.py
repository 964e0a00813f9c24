"""Jobs that overlap in one store: late writes of a replaced job are ignored, and damaged files do not count."""

from __future__ import annotations

import json
from functools import partial

import pytest

from support.sample_shards import PLAN, encoded_shard, sample_dataset, sample_format, sha256
from tandem.errors import JobError, OutputError
from tandem_workers.dataset import claim
from tandem_workers.dataset.aside import DAMAGED
from tandem_workers.dataset.card import CardInfo, closing_files
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.closing import close_dataset, is_closed
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.job_record import read_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.success_file import read_success
from tandem_workers.dataset.verify import verify
from tandem_workers.storage import layout

ROWS = {"rows": PLAN.num_rows, "shard_size": PLAN.shard_size}
OLD, NEW = {**ROWS, "seed": 1}, {**ROWS, "seed": 2}
FORMATS = ("webdataset", "parquet", "folder")


def make(store, epoch, name="webdataset", noise=0, shards=range(PLAN.num_shards)):
    for shard in shards:
        store_shard(store, Manifest(store, epoch), encoded_shard(shard, PLAN, noise=noise), sample_format(name), PLAN)


def close(store, epoch, name="webdataset", failed=None):
    info = CardInfo(sample_format(name), 12, {}, {}, "tandem generate", "tandem 0.0")
    render = partial(closing_files, store, info, epoch)
    close_dataset(Manifest(store, epoch), PLAN.num_shards, failed, render)


@pytest.mark.parametrize("name", FORMATS)
def test_names_of_an_epoch_say_so_and_are_read_back(name):
    shard, fmt = encoded_shard(1, PLAN), sample_format(name)
    plain = [path for path, _ in fmt.files(shard)]
    for epoch, content in ((0, ""), (1, ""), (12, ""), (0, "ab12cd34"), (3, "ab12cd34")):
        paths = [path for path, _ in fmt.files(shard, layout.tag(epoch, content))]
        assert all(map(layout.is_ours, paths)) and {layout.epoch_of(path) for path in paths} == {epoch}
        assert {layout.is_named_by_content(path) for path in paths} == {bool(content)}
        assert [layout.data_shard(path) for path in paths] == [layout.data_shard(path) for path in plain]
        assert [layout.data_index(path) for path in paths] == [layout.data_index(path) for path in plain]
    for epoch in (0, 1, 12):
        assert layout.manifest_shard(layout.manifest_path(7, epoch), epoch) == 7
        assert layout.epoch_of(layout.manifest_path(7, epoch)) == epoch
    strange = ("shards/00000-0.tar", "shards/00000-01.tar", "shards/00000-1-AB12CD34.tar", "manifest/00000-0.json")
    assert not any(map(layout.is_ours, (*strange, "shards/00000--1.tar", "manifest/00000-1-ab12cd34.json")))


def test_a_writer_of_a_replaced_job_stops_and_can_do_nothing_to_the_new_one(store):
    open_job(store, OLD)
    make(store, 0, shards=[0])
    new = open_job(store, NEW, overwrite=True)
    assert (new.epoch, new.committed) == (1, frozenset())
    with pytest.raises(OutputError, match=r"another job has taken this place \(--overwrite\)"):
        make(store, 0, shards=[1])
    with pytest.raises(OutputError, match="another job has taken this place"):
        close(store, 0)
    with pytest.raises(OutputError, match="seed: there 2, here 1"):
        open_job(store, OLD)
    assert open_job(store, NEW).epoch == 1


def test_what_a_replaced_job_still_had_under_way_is_swept(store):
    """Its puts were asked for before, and come at the worst moment: after its files have been removed."""
    open_job(store, OLD)
    open_job(store, NEW, overwrite=True)
    late = sample_format().files(encoded_shard(0, PLAN, noise=9))[0]
    store.put_once(*late)
    store.put_once(layout.manifest_path(0), b"late")
    store.put_once(layout.SUCCESS, b'{"failed_shards": {"1": "old"}}')
    store.replace(layout.JOB, json.dumps({"identity": OLD, "info": {}}).encode())
    assert Manifest(store).committed() == frozenset() and read_job(store)["identity"] == NEW
    make(store, 1)
    close(store, 1)
    assert store.list_files("shards") == [f"shards/0000{i}-1.tar" for i in range(3)]
    assert json.loads(store.read(layout.SUCCESS))["epoch"] == 1
    assert json.loads(store.read(layout.JOB))["identity"] == NEW
    assert verify(store).problems == []


def test_of_two_jobs_that_replace_one_each_has_an_epoch_and_the_later_wins(store):
    open_job(store, OLD)
    for epoch, seed in ((1, 2), (2, 3)):
        assert open_job(store, {**ROWS, "seed": seed}, overwrite=True).epoch == epoch
    with pytest.raises(OutputError, match="another job has taken"):
        make(store, 1)
    assert read_job(store)["identity"]["seed"] == 3


def test_an_overwrite_that_is_replaced_at_once_takes_nothing_of_the_next_one(store, monkeypatch):
    """It removed the _SUCCESS and the card of a job that had begun after it and closed before it went on."""
    open_job(store, OLD)
    publish = claim.publish_job

    def overtaken(*of):
        monkeypatch.setattr(claim, "publish_job", publish)
        open_job(store, OLD, overwrite=True)
        make(store, 2)
        close(store, 2)
        publish(*of)

    monkeypatch.setattr(claim, "publish_job", overtaken)
    with pytest.raises(OutputError, match="seed: there 1, here 2"):
        open_job(store, NEW, overwrite=True)
    assert verify(store).problems == []


def test_an_overwrite_whose_answer_was_lost_is_its_own(store, monkeypatch):
    open_job(store, OLD)
    put_once = type(store).put_once
    monkeypatch.setattr(type(store), "put_once", lambda self, *file: (put_once(self, *file), put_once(self, *file))[1])
    assert open_job(store, NEW, overwrite=True).epoch == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_card_of_a_later_epoch_reads_its_files_alone(tmp_path, monkeypatch, name):
    store = sample_dataset(tmp_path, name)
    open_job(store, NEW, overwrite=True)
    make(store, 1, name)
    close(store, 1, name)
    store.put_once(*sample_format(name).files(encoded_shard(0, PLAN, noise=9))[0])  # late, after closing
    python = store.read("README.md").decode().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    seen = {}
    exec(python.split("\n\nimport pyarrow")[0].split("\n\nfrom torchvision")[0], seen)
    assert seen["row"]["index"] == 9 if name == "webdataset" else len(seen["dataset"]) == 10


# ---- files that stand under the names of others


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_damaged_file_is_never_committed_and_the_shard_is_put_under_another_name(store, name, epoch):
    fmt = sample_format(name)
    open_job(store, NEW if not epoch else OLD)
    if epoch:
        open_job(store, NEW, overwrite=True)
    path, data = fmt.files(encoded_shard(1, PLAN), layout.tag(epoch))[0]
    store.put_once(path, data[:600] + bytes(200) + data[800:])
    make(store, epoch, name)
    entry = Manifest(store, epoch).entry(1)
    assert all(layout.is_named_by_content(file.path) for file in entry.files)
    close(store, epoch, name)
    assert verify(store).problems == verify(store).uncommitted == []
    assert not store.exists(path), "junk goes once the entry stands"
    assert is_closed(Manifest(store), PLAN.num_shards, range(PLAN.num_shards))


def test_a_writer_who_died_before_it_removed_the_junk_is_cleaned_up_after_at_close(store, monkeypatch):
    open_job(store, NEW)
    store.put_once("shards/00001.tar", b"junk")
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "remove", lambda self, path: None)
        make(store, 0)
    assert store.exists("shards/00001.tar")
    close(store, 0)
    assert not store.exists("shards/00001.tar")
    card = store.read("README.md").decode()
    assert "tar" in card and str(Manifest(store).entry(1).files[0].path.split("/")[1][5:14]) in card


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("epoch", [0, 1])
def test_what_a_writer_left_whose_shard_another_committed_goes_at_close(store, name, epoch):
    """It met the other's files, which it could not hold for whole, put its own beside them, and died. Readers that
    take shards by a pattern would have had the images twice."""
    open_job(store, OLD)
    if epoch:
        open_job(store, OLD, overwrite=True)
    make(store, epoch, name, shards=[0, 2])
    kept = store.list_files()
    left = {
        shard: [*sample_format(name).files(encoded_shard(shard, PLAN, noise=9), layout.tag(epoch, "ab12cd34"))]
        for shard in (0, 1, 2)
    }
    for files in left.values():
        store.put_many(files)
    close(store, epoch, name, failed={1: "no numbers"})  # another job may be about to commit what is left of it
    closing = {layout.SUCCESS, *layout.CLOSING_FILES}
    assert set(store.list_files()) - closing == {*kept, *(path for path, _ in left[1])}
    make(store, epoch, name, shards=[1])
    close(store, epoch, name)
    assert verify(store).problems == verify(store).uncommitted == []


def test_junk_under_every_name_is_an_error_that_names_it(store):
    fmt, shard = sample_format(), encoded_shard(0, PLAN)

    class Junk:
        def files(self, shard, tag=""):
            for path, _ in fmt.files(shard, tag):
                store.put_once(path, b"junk")
            return fmt.files(shard, tag)

    with pytest.raises(OutputError, match=r"shards/00000-0-[0-9a-f]{8}\.tar in .* hold something else") as caught:
        store_shard(store, Manifest(store, 0), shard, Junk(), PLAN)
    assert "tandem verify --repair" in caught.value.hint
    assert Manifest(store, 0).committed() == frozenset()


# ---- closing


def test_a_shard_that_another_job_commits_while_we_close_is_no_failed_one(store, monkeypatch):
    open_job(store, OLD)
    make(store, 0, shards=[0, 1])
    put_once = type(store).put_once

    def commit_meanwhile(self, path, data):
        if path == layout.CARD:
            monkeypatch.setattr(type(store), "put_once", put_once)
            make(store, 0, shards=[2])
        return put_once(self, path, data)

    monkeypatch.setattr(type(store), "put_once", commit_meanwhile)
    close(store, 0, failed={2: "no numbers"})
    closing = json.loads(store.read(layout.SUCCESS))
    assert (closing["failed_shards"], closing["shards"]) == ({}, 3)
    assert "missing" not in store.read(layout.CARD).decode()


def test_a_success_that_comes_late_from_a_replaced_job_is_taken_back(store, monkeypatch):
    open_job(store, OLD)
    make(store, 0)
    put_once = type(store).put_once

    def overtake(self, path, data):
        if path == layout.SUCCESS:
            monkeypatch.setattr(type(store), "put_once", put_once)
            open_job(store, NEW, overwrite=True)
        return put_once(self, path, data)

    monkeypatch.setattr(type(store), "put_once", overtake)
    with pytest.raises(OutputError, match="another job has taken this place"):
        close(store, 0)
    assert not store.exists(layout.SUCCESS)


def test_a_changed_card_is_written_again(store):
    open_job(store, OLD)
    make(store, 0)
    close(store, 0)
    before = {path: sha256(store.read(path)) for path in (layout.CARD, layout.SUCCESS)}
    store.replace(layout.CARD, b"of another closing")
    assert not is_closed(Manifest(store), PLAN.num_shards, range(PLAN.num_shards))
    close(store, 0)
    assert before == {path: sha256(store.read(path)) for path in before}
    (kept,) = store.list_files(DAMAGED)
    assert store.read(kept) == b"of another closing", "maybe a person's own words"


def test_names_that_a_listing_lacks_are_asked_for(store, monkeypatch):
    open_job(store, OLD)
    make(store, 0)
    whole = type(store).list_files
    monkeypatch.setattr(type(store), "list_files", lambda self, folder="": whole(self, folder)[:1])
    manifest = Manifest(store, 0)
    assert manifest.committed() == {0}
    close(store, 0)
    assert json.loads(store.read(layout.SUCCESS))["shards"] == 3
    store.remove(manifest.path(2))
    assert manifest.committed(range(3)) == {0, 1}
    with pytest.raises(JobError, match="1 of 3 shards are missing: 2"):
        close(store, 0)


def test_datasets_of_older_versions_stay_closed_and_are_gone_on_with(store):
    store.put_once(layout.JOB, json.dumps({"identity": OLD, "info": {}}).encode())
    make(store, 0)
    old = {"shards": 3, "rows": 10, "size_bytes": 1, "labels": {}, "seconds": {}, "failed_shards": {}}
    store.put_once(layout.SUCCESS, json.dumps(old).encode())
    manifest = Manifest(store)
    assert open_job(store, OLD).epoch == 0 and is_closed(manifest, 3, {0, 1, 2})
    assert not is_closed(manifest, 3, {0, 1, 2}, [layout.CARD]) and not is_closed(manifest, 3, {0, 1})
    del old["failed_shards"]  # of the first versions
    store.replace(layout.SUCCESS, json.dumps(old).encode())
    assert is_closed(manifest, 3, {0, 1, 2}) and read_success(store)["failed_shards"] == set()


def test_a_writer_that_was_given_up_and_commits_after_all_takes_the_closing_back(store):
    open_job(store, OLD)
    make(store, 0, shards=[0, 1])
    close(store, 0, failed={2: "stands still"})
    make(store, 0, shards=[2])
    assert not store.exists(layout.SUCCESS)
    close(store, 0)
    assert json.loads(store.read(layout.SUCCESS))["failed_shards"] == {}
