"""A job of thousands of shards that is finished is recognised from names, without Ray."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
import numpy as np
import pytest

from support.runs import start
from support.s3_proxy import S3Proxy
from tandem_jobs.generate import GenerateJob, GenerateSpec
from tandem_jobs.options.spec import parse
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.storage import layout
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Stored

SHARDS = 3_000


@pytest.mark.slow
def test_a_finished_job_is_recognised_by_listing_names(s3_server, tiny_models, tmp_path, measured):
    boto3.client("s3").create_bucket(Bucket="finished")
    files = [part for role, path in tiny_models.items() for part in (f"--{role}", path)]
    size = ["--classes", "all", "--images", str(SHARDS), "--batch", "1", "--shard-size", "1"]
    argv = [*files, *size, "--out", "s3://finished/job"]

    job = GenerateJob(parse(GenerateSpec, argv, "tandem generate"))
    store = open_store("s3://finished/job")
    open_job(store, job.identity(False))
    manifest = Manifest(store)

    def commit(shard: int) -> None:
        rows = ShardRows(shard=shard, index=np.array([shard]), label=np.zeros(1, np.int32))
        manifest.commit_shard(shard, [Stored(layout.shard_path(shard, "tar"), 1, "0" * 64)], rows, {})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(commit, range(SHARDS)))
    for path, content in ((layout.CARD, b"#"), (layout.CONTACT_SHEET, b""), (layout.SUCCESS, b'{"failed_shards": {}}')):
        store.put_once(path, content)
    with S3Proxy(s3_server) as proxy:
        began = time.monotonic()
        run = start(["generate", *argv], tmp_path / "log", AWS_ENDPOINT_URL=proxy.endpoint)
        assert run.wait(timeout=120) == 0, (tmp_path / "log").read_text()
        seconds = time.monotonic() - began
        bodies = [path for method, path in proxy.seen if method == "GET" and "/job/" in path]
    measured(f"{SHARDS} finished shards recognised in {seconds:.1f} s, {proxy.number} requests")
    summary = json.loads((tmp_path / "log.out").read_text())
    assert (summary["resumed_shards"], summary["images"]) == (SHARDS, 0)
    assert sorted(bodies) == ["/finished/job/_SUCCESS", "/finished/job/job.json"]
    assert proxy.number < 40
