"""The commit protocol on a real S3 server."""

from __future__ import annotations

import hashlib
import pickle
import threading
import urllib.parse
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from support.s3_proxy import S3Proxy
from support.s3_server import made_bucket
from support.sample_shards import PLAN, encoded_shard, sample_format
from tandem.errors import InputError, OutputError
from tandem_jobs.cli import main
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.closing import close_dataset
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.verify import verify
from tandem_workers.storage import s3_put, s3_store
from tandem_workers.storage.places import open_store
from tandem_workers.storage.s3_clean import time_before

BUCKET = "store"


@pytest.fixture
def bucket(s3_server: str):
    with made_bucket(BUCKET) as client:
        yield client


@pytest.fixture(params=["", "/a/b"], ids=["whole bucket", "prefix"])
def store(bucket, request):
    return open_store(f"s3://{BUCKET}{request.param}")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_put_tells_size_and_hash_and_never_overwrites(store):
    first = store.put_once("shards/00000.tar", b"first")
    assert (first.size_bytes, first.sha256, first.created) == (5, sha256(b"first"), True)
    second = store.put_once("shards/00000.tar", b"the second writer")
    assert (second.size_bytes, second.sha256, second.created) == (5, sha256(b"first"), False)
    assert store.read("shards/00000.tar") == b"first"
    assert store.list_files() == ["shards/00000.tar"] == store.list_files("shards")
    assert store.list_files("shard") == []


def test_an_object_put_by_another_tool_is_hashed_by_reading(bucket, store):
    promised = {"sha256": sha256(b"what its writer meant to put")}  # metadata are hashed by nobody
    bucket.put_object(Bucket=BUCKET, Key=store.key("shards/00000.tar"), Body=b"theirs", Metadata=promised)
    stored = store.put_once("shards/00000.tar", b"ours")
    assert (stored.size_bytes, stored.sha256, stored.created) == (6, sha256(b"theirs"), False)


@pytest.mark.parametrize("size", [10, 11 << 20], ids=["one put", "three parts"])
def test_of_racing_writers_of_different_bytes_one_wins_and_all_report_the_winner(bucket, size, monkeypatch):
    monkeypatch.setattr(s3_store, "SINGLE_BYTES", 5 << 20)
    monkeypatch.setattr(s3_put, "PART_BYTES", 5 << 20)  # the smallest that servers take
    start = threading.Barrier(4)

    def race(writer: int):
        mine = open_store(f"s3://{BUCKET}/race")
        start.wait()
        return mine.put_once("shards/00000.tar", bytes([writer]) * (size + writer))

    with ThreadPoolExecutor(4) as pool:
        stored = list(pool.map(race, range(4)))
    data = open_store(f"s3://{BUCKET}/race").read("shards/00000.tar")
    assert sum(s.created for s in stored) == 1
    assert {(s.size_bytes, s.sha256) for s in stored} == {(len(data), sha256(data))}
    assert len(set(data)) == 1
    assert "Uploads" not in bucket.list_multipart_uploads(Bucket=BUCKET)


def test_files_can_be_read_in_part_replaced_and_removed(store):
    data = bytes(range(256)) * 100
    store.put_many([(f"images/00000/{i:09d}.png", data + bytes([i])) for i in range(40)])
    with store.open("images/00000/000000007.png") as file:
        file.seek(-2, 2)
        assert file.read() == bytes([255, 7])
    store.replace("images/00000/000000007.png", b"new")
    assert store.read("images/00000/000000007.png") == b"new"
    store.remove("images/00000/000000007.png")
    store.remove("images/00000/000000007.png")
    assert not store.exists("images/00000/000000007.png") and len(store.list_files("images")) == 39
    for read in (store.read, store.open):
        with pytest.raises(FileNotFoundError):
            read("images/00000/000000007.png")


def test_a_store_travels_to_workers_without_its_connections(store):
    store.put_once("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


def test_check_leaves_nothing_behind_and_names_what_is_wrong(store, bucket, monkeypatch):
    store.check()
    assert "Contents" not in bucket.list_objects_v2(Bucket=BUCKET)
    with pytest.raises(OutputError, match="bucket nowhere-at-all does not exist at http"):
        open_store("s3://nowhere-at-all/x").check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(OutputError, match=f"bucket {BUCKET}.*(Signature|403)"):
        open_store(store.uri).check()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match=f"bucket {BUCKET}.*127.0.0.1:9"):
        open_store(store.uri).check()


@pytest.mark.parametrize(
    "uri", ["s3://", "s3://bad bucket/x", "s3://b", "s3://bucket/a//b", "s3://bucket/../b", "gs://bucket/x"]
)
def test_addresses_are_checked_without_asking_a_server(uri):
    with pytest.raises(InputError, match="out: expected"):
        open_store(uri)


def test_an_upload_given_up_long_ago_is_cleaned(bucket, store, monkeypatch):
    key = store.key("shards/00000.tar")
    upload = bucket.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    bucket.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    store.clean()
    assert len(bucket.list_multipart_uploads(Bucket=BUCKET)["Uploads"]) == 1
    bucket.put_object(Bucket=BUCKET, Key=store.key(".tmp/claims/shards/00000.tar"), Body=b"")  # of a killed writer
    monkeypatch.setattr(s3_store, "TEMPORARY_LIFE_S", -60.0)
    store.clean()
    assert "Uploads" not in bucket.list_multipart_uploads(Bucket=BUCKET)
    assert "Contents" not in bucket.list_objects_v2(Bucket=BUCKET)


def test_closing_ends_every_upload_and_a_writer_that_is_late_finds_what_stands(bucket, store, monkeypatch):
    path = "shards/00000.tar"
    bucket.create_multipart_upload(Bucket=BUCKET, Key=store.key(path))  # its answer was lost

    @contextmanager
    def closed_meanwhile(*_: object):
        with monkeypatch.context() as patch:
            patch.setattr(s3_store, "SINGLE_BYTES", 1 << 20)
            open_store(store.uri).put_once(path, b"theirs")
        open_store(store.uri).clean(closing=True)
        assert "Uploads" not in bucket.list_multipart_uploads(Bucket=BUCKET)
        yield

    monkeypatch.setattr(s3_store, "SINGLE_BYTES", 0)
    monkeypatch.setattr(s3_put, "_alone", closed_meanwhile)
    stored = store.put_once(path, b"ours")
    assert (stored.size_bytes, stored.sha256, stored.created) == (6, sha256(b"theirs"), False)


@pytest.mark.parametrize(("lost", "created"), [("create", True), ("part", True), ("completion", False)])
def test_a_large_file_whose_answers_are_lost_stands_whole(s3_server, bucket, store, monkeypatch, lost, created):
    """A lost create leaves an upload that nobody knows of, until the dataset is closed."""
    monkeypatch.setattr(s3_store, "SINGLE_BYTES", 5 << 20)
    monkeypatch.setattr(s3_put, "PART_BYTES", 5 << 20)
    of_this_file = {("POST", 1): "create", ("PUT", 1): "part", ("POST", 2): "completion"}
    counted: Counter[str] = Counter()

    def fault(number: int, method: str, path: str) -> str | None:
        counted[method] += path.endswith("/shards/00000.tar")
        return "lost answer" if of_this_file.get((method, counted[method])) == lost and "/.tmp/" not in path else None

    data = bytes(6 << 20)
    with S3Proxy(s3_server, fault) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        stored = open_store(store.uri).put_once("shards/00000.tar", data)
        assert proxy.faults["lost answer"] == 1
    assert (stored.sha256, stored.created) == (sha256(data), created)
    assert len(bucket.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])) == (lost == "create")
    store.clean(closing=True)
    assert "Uploads" not in bucket.list_multipart_uploads(Bucket=BUCKET)
    assert store.read("shards/00000.tar") == data


def test_age_is_by_the_clock_of_the_store():
    """A machine whose clock is a day ahead would end the uploads of living writers."""
    answer = {"ResponseMetadata": {"HTTPHeaders": {"date": "Tue, 03 Nov 2026 10:00:00 GMT"}}}
    assert time_before(answer, 60).isoformat() == "2026-11-03T09:59:00+00:00"


@pytest.mark.parametrize("name", ["webdataset", "parquet", "folder"])
def test_a_dataset_is_listed_and_verified(bucket, tmp_path, capsys, name):
    store = open_store(f"s3://{BUCKET}/{name}")
    open_job(store, {"rows": PLAN.num_rows, "shard_size": PLAN.shard_size})
    fmt = sample_format(name)
    for shard in range(PLAN.num_shards):
        store_shard(store, Manifest(store), encoded_shard(shard, PLAN), fmt, PLAN)
    assert [problem.text for problem in verify(store).problems] == ["_SUCCESS is missing"]
    close_dataset(Manifest(store), PLAN.num_shards)
    assert main(["verify", store.uri]) == 0
    capsys.readouterr()
    assert main(["ls", store.uri, "--presign", "60"]) == 0
    addresses = capsys.readouterr().out.split()
    files = [file for entry in Manifest(store).entries() for file in entry.files]
    assert len(addresses) == len(files)
    asked = urllib.parse.parse_qs(urllib.parse.urlsplit(addresses[0]).query)
    assert asked["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"] and "X-Amz-Signature" in asked and "Signature" not in asked
    assert asked["X-Amz-Expires"] == ["60"]
    with urllib.request.urlopen(addresses[0], timeout=10) as answer:
        assert sha256(answer.read()) == files[0].sha256
    store.replace(files[-1].path, store.read(files[-1].path)[:-1] + b"!")
    store.remove(files[0].path)
    assert main(["verify", store.uri]) == 1
    said = capsys.readouterr().err
    assert f"{files[0].path}: missing" in said and f"{files[-1].path}: expected sha256" in said
    assert main(["verify", store.uri, "--repair"]) == 0
    assert Manifest(store).committed() == {1}
    assert [path for path in store.list_files("damaged") if path.endswith(files[-1].path)]


def test_two_jobs_at_once_keep_one_and_the_same(bucket):
    uri = f"s3://{BUCKET}/two"
    open_job(open_store(uri), {"rows": PLAN.num_rows, "shard_size": PLAN.shard_size})

    def work(quality: int):
        store = open_store(uri)
        for shard in range(PLAN.num_shards):
            mine = encoded_shard(shard, PLAN)
            mine.images = [image + bytes([quality]) for image in mine.images]
            store_shard(store, Manifest(store), mine, sample_format("folder"), PLAN)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (1, 2)))
    store = open_store(uri)
    close_dataset(Manifest(store), PLAN.num_shards)
    assert verify(store).problems == []
