"""s3:// addresses are taken letter by letter, wherever one is given."""

import pickle
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.exceptions import ClientError

from support.fake_s3 import FakeS3
from tandem.errors import InputError
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.options.spec import parse
from tandem_workers.models.fetch import fetch
from tandem_workers.storage import s3_client
from tandem_workers.storage.places import open_store
from tandem_workers.storage.s3_address import split_address, split_object, split_prefix
from tandem_workers.storage.s3_retry import QUICK
from tandem_workers.storage.s3_store import S3Store

ODD_KEYS = ["a#b.csv", "a?b.csv", "a?versionId=1#c.csv", "a%20b.csv", "a b.csv", "a+b&c=d;e.csv", "ü/ß.csv", "//a.csv"]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_every_letter_of_a_key_counts(key):
    assert split_object(f"s3://bucket/{key}") == ("bucket", key)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_label_files_and_weights_with_odd_names_are_the_ones_that_are_read(key, tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    cut = dict.fromkeys(("a", "a b.csv", "a%20b.csv", "a.csv", "/a.csv"), b"label\n0\n")
    store = FakeS3({("bucket", name): data for name, data in (cut | {key: b"label\n1\n1\n"}).items()})
    monkeypatch.setattr(s3_client, "make_client", lambda attempts: store)
    assert read_label_file(f"s3://bucket/{key}", ("a", "b")).label.tolist() == [1, 1]
    assert {get["Key"] for get in store.gets} == {key}


@pytest.mark.parametrize("key", ODD_KEYS)
def test_flag_file_and_variable_hand_on_every_letter(key, tmp_path, monkeypatch):
    address = f"s3://bucket/{key}"
    (tmp_path / "spec.yaml").write_text(f"labels: '{address}'\nout: out\n")
    given = [parse(GenerateSpec, ["--labels", address, "--out", "out"], "tandem generate")]
    given.append(parse(GenerateSpec, ["--spec", str(tmp_path / "spec.yaml")], "tandem generate"))
    monkeypatch.setenv("TANDEM_LABELS", address)
    given.append(parse(GenerateSpec, ["--out", "out"], "tandem generate"))
    assert [spec.labels for spec in given] == [address] * 3


def test_output_addresses_are_literal_too():
    store = open_store("s3://bucket/a#b?c/d%20e/")
    assert (store.bucket, store.prefix, store.uri) == ("bucket", "a#b?c/d%20e", "s3://bucket/a#b?c/d%20e")
    assert store.key("shards/00000.tar") == "a#b?c/d%20e/shards/00000.tar"


def test_prefixes_lose_slashes_at_their_ends():
    assert split_prefix("s3://bucket//a/b//", "out") == ("bucket", "a/b")
    assert split_address("s3://bucket") == split_address("s3://bucket/") == ("bucket", "")


def test_buckets_of_before_2018_can_be_read():
    assert split_object("s3://Old_Bucket.Name/key") == ("Old_Bucket.Name", "key")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://", "got 's3://'"),
        ("s3:///key", "got 's3:///key'"),
        ("s3:/bucket/key", "got 's3:/bucket/key'"),
        ("S3://bucket/key", "got 'S3://bucket/key'"),
        ("s3://user:secret@bucket/key", "expected s3://bucket/key"),
        ("s3://a#b/key", "got 's3://a#b/key'"),
        ("s3://bucket", "got 's3://bucket'"),
        ("s3://bucket/folder/", "got 's3://bucket/folder/'"),
        ("s3://bucket/../key", "plain names"),
        ("s3://bucket/a\nb", "plain names"),
        ("s3://bucket/\udcff", "plain names"),
        ("s3://bucket/" + "ü" * 513, "at most 1024 bytes, got 1026"),
    ],
)
def test_what_is_no_address_is_refused(address, message, tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=message):
        fetch(address)
    assert not (tmp_path / "cache").exists()


def test_a_name_longer_than_file_systems_take_is_cut_before_its_ending(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    store = FakeS3({("bucket", "ü" * 300 + ".csv"): b"label\n1\n"})
    monkeypatch.setattr(s3_client, "make_client", lambda attempts: store)
    path = fetch("s3://bucket/" + "ü" * 300 + ".csv")
    assert path.suffix == ".csv" and path.read_bytes() == b"label\n1\n"


@pytest.mark.parametrize(
    ("headers", "region"), [({"x-amz-bucket-region": "eu-north-1"}, "eu-north-1"), ({}, "us-east-1")]
)
@pytest.mark.parametrize("listed", [True, False])
def test_presigned_addresses_are_of_version_4_and_of_the_bucket_s_region(headers, region, listed, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session")
    store = S3Store("s3://bucket/a")

    class Bucket:
        def head_bucket(self, Bucket: str) -> dict:
            answer = {"ResponseMetadata": {"HTTPHeaders": headers}, "Error": {"Code": "403"}}
            if not listed:
                raise ClientError(answer, "HeadBucket")
            return answer

    store._clients[QUICK] = Bucket()
    asked = parse_qs(urlsplit(store.presign("shards/00000.tar", 3600)).query)
    assert asked["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"] and asked["X-Amz-Expires"] == ["3600"]
    assert asked["X-Amz-Credential"][0].split("/")[2:] == [region, "s3", "aws4_request"]
    assert asked["X-Amz-Security-Token"] == ["session"] and "X-Amz-Signature" in asked
    assert pickle.loads(pickle.dumps(store)).uri == store.uri
