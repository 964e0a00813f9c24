"""Reads and writes on S3 all use the certificates, proxies and profiles of the AWS variables."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import boto3
import pytest
import trustme

from support.ports import free_port
from support.s3_proxy import S3Proxy
from support.sample_shards import PLAN, encoded_shard, sample_format
from support.sources import FOLDERS
from tandem.errors import InputError, OutputError
from tandem_jobs.cli import main
from tandem_workers.dataset.card import CardInfo, closing_files
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.closing import close_dataset
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.verify import verify
from tandem_workers.models.fetch import fetch
from tandem_workers.storage import s3_store
from tandem_workers.storage.places import open_store
from tandem_workers.storage.s3_retry import Patience

BUCKET = "ways"
HOST = "store.example"  # a name that nobody resolves: what does not go by the proxy goes nowhere
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> tuple[ssl.SSLContext, str]:
    """A server's TLS settings, and the file of the private authority that vouches for it."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, "127.0.0.1").configure_cert(tls)
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return tls, str(path)


@pytest.fixture(params=["private CA", "HTTP_PROXY", "HTTPS_PROXY and private CA", "AWS_ENDPOINT_URL_S3", "profile"])
def way(request, s3_server, s3_environment, authority, monkeypatch, tmp_path) -> Iterator[S3Proxy]:
    """The environment is set so that there is one way to the server; the value counts what goes there."""
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="weights.bin", Body=b"weights")
    tls, ca = authority
    with ExitStack() as stack:
        plain = stack.enter_context(S3Proxy(s3_server))
        secure = stack.enter_context(S3Proxy(s3_server, tls=tls))
        tunnel = stack.enter_context(S3Proxy(secure.endpoint))
        dead = f"http://127.0.0.1:{free_port()}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        variables, counted = {
            "private CA": ({"AWS_ENDPOINT_URL": secure.endpoint, "AWS_CA_BUNDLE": ca}, secure),
            "HTTP_PROXY": ({"AWS_ENDPOINT_URL": f"http://{HOST}", "HTTP_PROXY": plain.endpoint}, plain),
            "HTTPS_PROXY and private CA": (
                {"AWS_ENDPOINT_URL": f"https://{HOST}", "HTTPS_PROXY": tunnel.endpoint, "AWS_CA_BUNDLE": ca},
                secure,
            ),
            "AWS_ENDPOINT_URL_S3": (
                {"AWS_ENDPOINT_URL": dead, "AWS_ENDPOINT_URL_S3": plain.endpoint, "HTTP_PROXY": dead}
                | {"NO_PROXY": "127.0.0.1"},
                plain,
            ),
            "profile": ({"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "lab"}, plain),
        }[request.param]
        if request.param == "profile":  # keys, region and endpoint in AWS' own file, and none of them as variables
            (tmp_path / "config").write_text(
                f"[profile lab]\nregion = us-east-1\nendpoint_url = {plain.endpoint}\n"
                f"aws_access_key_id = {s3_environment['AWS_ACCESS_KEY_ID']}\n"
                f"aws_secret_access_key = {s3_environment['AWS_SECRET_ACCESS_KEY']}\n"
            )
            for name in s3_environment:
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield counted
        assert (("CONNECT", f"{HOST}:443") in tunnel.seen) == ("HTTPS_PROXY" in variables)
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)


def test_a_dataset_is_made_read_and_signed_for_by_one_way(way, capsys):
    assert fetch(f"s3://{BUCKET}/weights.bin").read_bytes() == b"weights"
    store, fmt = open_store(f"s3://{BUCKET}/set"), sample_format("parquet")
    store.check()
    open_job(store, {"rows": PLAN.num_rows, "shard_size": PLAN.shard_size})
    for shard in range(PLAN.num_shards):
        store_shard(store, Manifest(store), encoded_shard(shard, PLAN), fmt, PLAN)
    info = CardInfo(fmt, 16, {}, {}, "tandem generate", "tandem 0")
    close_dataset(Manifest(store), PLAN.num_shards, render=partial(closing_files, store, info, 0))
    assert verify(store).problems == []
    assert main(["ls", store.uri, "--presign", "60"]) == 0
    assert all(line.startswith(store.signer.meta.endpoint_url) for line in capsys.readouterr().out.split())
    for shard in range(PLAN.num_shards):
        assert way.seen["PUT", f"/{BUCKET}/set/shards/{shard:05d}.parquet"] == 1
        assert way.seen["GET", f"/{BUCKET}/set/shards/{shard:05d}.parquet"] >= 1


def test_an_unknown_authority_is_named_before_anything_is_written(s3_server, authority, monkeypatch):
    monkeypatch.setattr(s3_store, "QUICK", Patience(0, 1, 10))
    with S3Proxy(s3_server, tls=authority[0]) as secure:
        monkeypatch.setenv("AWS_ENDPOINT_URL", secure.endpoint)
        with pytest.raises(OutputError, match="SSL validation failed") as raised:
            open_store(f"s3://{BUCKET}/set").check()
        assert "AWS_CA_BUNDLE" in (raised.value.hint or "")
        with pytest.raises(InputError, match="SSL validation failed"):
            fetch(f"s3://{BUCKET}/weights.bin")
        assert not secure.seen


def test_no_other_client_speaks_to_s3():
    ways = re.compile(r"S3FileSystem|pyarrow\.fs|boto3\.(client|resource|session)|s3fs|fsspec")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS.values()
        for path in folder.rglob("*.py")
        if ways.search(path.read_text())
    }
    assert found == {"workers/tandem_workers/storage/s3_client.py"}
