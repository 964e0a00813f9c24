"""Data read from S3 is of one version, whatever happens between two requests."""

import os
import random

import pytest

from support.fake_s3 import FakeS3, etag
from tandem.errors import InputError, OutputError
from tandem_workers.models.fetch import cache_folder, fetch
from tandem_workers.storage import s3_client, s3_read
from tandem_workers.storage.s3_read import ObjectChangedError, ObjectReader, head, read_object

OLD, NEW = b"o" * 1000, b"n" * 900
PLACE = ("bucket", "w.bin")


@pytest.fixture
def store(tmp_path, monkeypatch) -> FakeS3:
    """With parts of 100 bytes, one after the other, and no waiting."""
    fake = FakeS3({PLACE: OLD})
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(s3_client, "make_client", lambda attempts: fake)
    monkeypatch.setattr(s3_read, "PART_BYTES", 100)
    monkeypatch.setattr(s3_read, "PARTS_AT_ONCE", 1)
    monkeypatch.setattr(s3_read.time, "sleep", lambda seconds: None)
    return fake


@pytest.mark.parametrize("knows_if_match", [True, False])
@pytest.mark.parametrize("moment", [1, 5, 10])
def test_a_file_replaced_while_it_is_fetched_is_fetched_again(store, moment, knows_if_match):
    store.knows_if_match = knows_if_match
    store.before = lambda n: store.objects.update({PLACE: NEW}) if n == moment else None
    assert fetch("s3://bucket/w.bin").read_bytes() == NEW
    assert {get["IfMatch"] for get in store.gets} == {etag(OLD), etag(NEW)}
    assert len(store.gets) >= moment + 9
    left = [p.name for p in cache_folder().rglob("*") if p.is_file()]
    assert sorted(left) == ["lock", "lock", "w.bin", "w.bin.sha256"]  # nothing of the old version


def test_a_file_replaced_again_and_again_is_refused(store):
    store.before = lambda n: store.objects.update({PLACE: os.urandom(1000)})
    with pytest.raises(InputError, match=r"cannot fetch bucket bucket, key w\.bin: the object was replaced while"):
        fetch("s3://bucket/w.bin")
    assert len({get["IfMatch"] for get in store.gets}) == s3_read.VERSIONS


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000])
def test_a_file_comes_whole(store, size):
    store.objects[PLACE] = random.Random(size).randbytes(size)
    assert fetch("s3://bucket/w.bin").read_bytes() == store.objects[PLACE]


def test_what_the_disk_does_not_take_is_said(store, monkeypatch):
    monkeypatch.setattr(s3_read.os, "pwrite", lambda *_: 7)
    with pytest.raises(InputError, match=r"cannot keep s3://bucket/w\.bin in .*: wrote 70 of 1000 bytes"):
        fetch("s3://bucket/w.bin")
    assert not list(cache_folder().rglob("w.bin*"))


def test_a_body_that_breaks_off_is_continued_where_it_broke(store):
    store.broken = {1: 300, 2: 0, 3: 200, 4: 0}
    assert read_object(store, *PLACE) == OLD
    assert [get["Range"] for get in store.gets] == [None, *(f"bytes={n}-999" for n in (300, 300, 500, 500))]
    assert {get["IfMatch"] for get in store.gets[1:]} == {etag(OLD)}


def test_a_body_that_never_comes_ends_in_an_error(store):
    store.broken = dict.fromkeys(range(1, 99), 0)
    with pytest.raises(s3_read.ResponseStreamingError):
        read_object(store, *PLACE)
    assert len(store.gets) == 1 + s3_read.BODY_ATTEMPTS


def test_an_object_replaced_after_its_body_broke_is_read_again(store):
    store.broken = {1: 300}
    store.before = lambda n: store.objects.update({PLACE: NEW}) if n == 2 else None
    assert read_object(store, *PLACE) == NEW


def test_an_open_file_seeks_and_does_not_mix_versions(store):
    store.objects[PLACE] = bytes(range(250))
    file = ObjectReader(store, *PLACE, head(store, *PLACE))
    assert (file.seek(-3, 2), file.read(), file.read()) == (247, bytes([247, 248, 249]), b"")
    assert (file.seek(10), file.read(2), file.tell(), file.seek(5, 1)) == (10, bytes([10, 11]), 12, 17)
    assert (file.seek(100), file.read(), store.gets[-1]["Range"]) == (100, bytes(range(100, 250)), "bytes=100-249")
    assert (file.seek(0), file.seek(400), file.read(), file.read(1)) == (0, 400, b"", b"")
    file.seek(0)
    store.objects[PLACE] = NEW
    with pytest.raises(OutputError, match=r"cannot read bucket bucket, key w\.bin: the object was replaced"):
        file.read(1)


def test_a_store_without_ranges_is_noticed(store, monkeypatch):
    whole = store.get_object
    monkeypatch.setattr(store, "get_object", lambda Bucket, Key, Range, IfMatch: whole(Bucket, Key))
    with pytest.raises(InputError, match="expected 100 bytes for the range bytes=0-99, got 1000"):
        fetch("s3://bucket/w.bin")


def test_of_one_version_gives_up():
    def changed() -> None:
        raise ObjectChangedError

    with pytest.raises(ObjectChangedError):
        s3_read.of_one_version(changed)
