"""Jobs whose store is behind an unreliable connection make the shards of an undisturbed job, in one run or several."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import boto3
import pytest

from support.runs import job, start, wait_until
from support.s3_proxy import Fault, S3Proxy, Weather
from support.s3_server import made_bucket
from support.sample_shards import encoded_shard, sample_format
from tandem.errors import TandemError
from tandem_jobs.cli import main
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.closing import close_dataset
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.dataset.verify import verify
from tandem_workers.storage import s3_store
from tandem_workers.storage.places import open_store
from tandem_workers.storage.s3_retry import Patience

BUCKET = "weather"
PLAN = ShardPlan(24, 4)
CHANCE = 0.15  # of a fault, for each request
ALL = os.environ.get("TANDEM_ALL_WEATHER")  # seven more minutes: 20 seeds in place of 3, and a store that falls silent
PASSING: tuple[Fault, ...] = (
    "slow down",
    "server error",
    "conflict",
    "redirect",
    "reset",
    "lost answer",
    "cut body",
    "delay",
)
ENDING: tuple[Fault, ...] = ("denied", "hidden keys", "swallow")  # they may end a run


@pytest.fixture
def bucket(s3_server: str) -> Iterator[str]:
    with made_bucket(BUCKET):
        yield s3_server


def make(uri: str, name: str) -> None:
    """A job's use of its store, without models and without Ray."""
    store = open_store(uri)
    store.check()
    record = open_job(store, {"rows": PLAN.num_rows, "shard_size": PLAN.shard_size})
    manifest = Manifest(store, record.epoch)
    todo = [encoded_shard(shard, PLAN) for shard in range(PLAN.num_shards) if shard not in record.committed]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda shard: store_shard(store, manifest, shard, sample_format(name), PLAN), todo))
    close_dataset(manifest, PLAN.num_shards)


def shards_of(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {path: store.read(path) for path in store.list_files() if path.split("/")[0] in ("shards", "images", "rows")}


@pytest.mark.parametrize("seed", range(20 if ALL else 3))
def test_a_job_behind_a_bad_line_ends_in_the_shards_of_an_undisturbed_one(
    bucket, tmp_path, monkeypatch, seed, measured
):
    name = ("webdataset", "folder", "parquet")[seed % 3]
    make(str(tmp_path / "undisturbed"), name)
    monkeypatch.setattr(s3_store, "PATIENT", Patience(6.0, 1000, 0.7))
    monkeypatch.setattr(s3_store, "QUICK", Patience(3.0, 3, 0.7))
    uri, failures = f"s3://{BUCKET}/{seed}", []
    with S3Proxy(bucket, Weather(seed, CHANCE, *PASSING, *ENDING)) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for _ in range(20):
            try:
                make(uri, name)
                break
            except TandemError as error:
                failures.append(str(error))
        else:
            pytest.fail(f"no run came through: {failures}")
    measured(f"weather {seed}, {name}: {dict(proxy.faults)} of {proxy.number} requests; runs that ended: {failures}")
    assert shards_of(uri) == shards_of(str(tmp_path / "undisturbed"))
    assert verify(open_store(uri)).problems == []
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=BUCKET)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_behind_a_bad_line_needs_no_second_one(bucket, tiny_models, tmp_path, measured):
    """All that passes is waited for: `tandem generate` ends with exit code 0."""
    plain, out, log = tmp_path / "plain", f"s3://{BUCKET}/run", tmp_path / "log"
    assert main(job(tiny_models, plain, images=12)) == 0
    with S3Proxy(bucket, Weather(1, 2 * CHANCE, *PASSING)) as proxy:
        run = start(job(tiny_models, out, images=12), log, AWS_ENDPOINT_URL=proxy.endpoint)
        assert run.wait(timeout=120) == 0, log.read_text()
    measured(f"a run of 12 shards: {dict(proxy.faults)} of {proxy.number} requests")
    assert len(proxy.faults) > len(PASSING) / 2
    assert shards_of(out) == shards_of(str(plain))
    assert verify(open_store(out)).problems == []


@pytest.mark.slow
@pytest.mark.skipif(not ALL, reason="four minutes of waiting: TANDEM_ALL_WEATHER=1")
@pytest.mark.usefixtures("ray_cluster")
def test_a_store_that_falls_silent_is_waited_for_aloud_and_given_up(
    bucket, tiny_models, undisturbed, tmp_path, measured
):
    out, log, silent = f"s3://{BUCKET}/silent", tmp_path / "log", threading.Event()
    with S3Proxy(bucket, lambda n, method, path: "swallow" if silent.is_set() else None) as proxy:
        at = {"AWS_ENDPOINT_URL": proxy.endpoint}
        command = job(tiny_models, out)
        run = start(command, log, **at)
        wait_until(lambda: len(open_store(out).list_files("manifest")) >= 3, "3 shards")
        silent.set()
        began = time.monotonic()
        assert run.wait(timeout=200) == 1, log.read_text()
        seconds = {"in the middle": time.monotonic() - began}
        said = {"in the middle": log.read_text()}
        commands = {
            "verify": ["verify", out],
            "refine": ["refine", "--drafts", out, "--out", str(tmp_path / "refined")],
        }
        commands["at the start"] = command
        runs = {name: start(argv, tmp_path / name, **at) for name, argv in commands.items()}
        began = time.monotonic()
        while len(seconds) < 4:
            assert time.monotonic() - began < 200
            seconds |= {name: time.monotonic() - began for name in runs if name not in seconds and runs[name].poll()}
            time.sleep(0.2)
        said |= {name: (tmp_path / name).read_text() for name in runs}
        for name, text in said.items():
            measured(f"silent {name}: {seconds[name]:.0f} s")
            measured("\n".join(line for line in text.splitlines() if line.startswith(("waiting", "error"))))
        assert seconds["at the start"] < 45 and max(seconds.values()) < 150
        for text in said.values():
            assert "waiting for S3: " in text and "Read timeout" in text and "Traceback" not in text
        silent.clear()
        assert start(command, log, **at).wait(timeout=200) == 0, log.read_text()
    assert {path.split("/")[1]: sha256(data).hexdigest() for path, data in shards_of(out).items()} == undisturbed
