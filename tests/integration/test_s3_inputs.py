"""Weights and label files by s3:// address, from a real S3 server."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from support.s3_server import made_bucket
from tandem.class_names import ClassNames
from tandem.errors import InputError
from tandem_jobs.cli import main
from tandem_jobs.labels.label_file import read_label_file
from tandem_workers.models.fetch import fetch, fetched_sha256

BUCKET = "inputs"


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    with made_bucket(BUCKET) as client:
        yield client


def test_an_object_is_fetched_once_and_again_when_it_changes(bucket):
    bucket.put_object(Bucket=BUCKET, Key="a/rows.csv", Body=b"label\n1\n")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetch, [f"s3://{BUCKET}/a/rows.csv"] * 8))
    (path,) = paths
    assert path.read_bytes() == b"label\n1\n"
    stamp = path.stat().st_mtime_ns
    assert fetch(f"s3://{BUCKET}/a/rows.csv").stat().st_mtime_ns == stamp
    bucket.put_object(Bucket=BUCKET, Key="a/rows.csv", Body=b"label\n2\n")
    assert fetch(f"s3://{BUCKET}/a/rows.csv").read_bytes() == b"label\n2\n"


def test_a_damaged_copy_is_fetched_again_and_its_hash_kept(bucket):
    bucket.put_object(Bucket=BUCKET, Key="w.bin", Body=b"weights")
    path = fetch(f"s3://{BUCKET}/w.bin")
    assert fetched_sha256(path) == hashlib.sha256(b"weights").hexdigest()
    path.write_bytes(b"weighty")
    assert fetch(f"s3://{BUCKET}/w.bin", patient=True) == path and path.read_bytes() == b"weights"
    path.with_name("w.bin.sha256").unlink()  # a copy that an older version left
    path.write_bytes(b"weighty")
    assert fetch(f"s3://{BUCKET}/w.bin").read_bytes() == b"weights"


def test_label_files_are_read_from_s3(bucket):
    bucket.put_object(Bucket=BUCKET, Key="rows.csv", Body=b"label,count\n1,2\n0,1\n")
    assert read_label_file(f"s3://{BUCKET}/rows.csv", ClassNames(("a", "b"))).label.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (f"s3://{BUCKET}/no.csv", f"bucket {BUCKET}, key no.csv: NoSuchKey"),
        ("s3://nowhere/rows.csv", "bucket nowhere, key rows.csv: NoSuchBucket"),
        ("s3://", "expected s3://bucket/key"),
        ("gs://bucket/key", "expected s3://bucket/key, got 'gs://"),
    ],
)
def test_what_cannot_be_fetched_is_named(bucket, address, message):
    with pytest.raises(InputError, match=message):
        fetch(address)


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_with_weights_and_labels_from_s3(bucket, tiny_models, out, monkeypatch):
    options = []
    for role, path in tiny_models.items():
        bucket.upload_file(path, BUCKET, f"models/{role}.safetensors")
        options += [f"--{role}", f"s3://{BUCKET}/models/{role}.safetensors"]
    bucket.put_object(Bucket=BUCKET, Key="rows.jsonl", Body=b'{"class_name": "cat", "count": 3}\n')
    options += ["--labels", f"s3://{BUCKET}/rows.jsonl", "--out", out, "--format", "parquet"]
    assert main(["generate", *options, "--placement", "cpu", "--batch", "2"]) == 0
    assert pq.read_table(Path(out) / "shards")["class_name"].to_pylist() == ["cat"] * 3
    assert "AWS_SECRET_ACCESS_KEY" in os.environ
    written = b"".join(p.read_bytes() for p in Path(out).rglob("*") if p.is_file())
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in written
