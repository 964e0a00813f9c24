"""What happens to a run when its storage fails: a server that goes away, throttles or forgets keys, and a full disk."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from support.ports import free_port
from support.runs import committed, digests, job, start, wait_until
from support.s3_proxy import S3Proxy
from support.s3_server import S3Server
from tandem_jobs.cli import main
from tandem_workers.dataset.verify import verify
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
BUCKET = "faults"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[S3Server]:
    """A server of its own, which a test may stop; this process and those that it starts talk to it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
    (tmp_path / "s3").mkdir()
    server = S3Server(tmp_path / "s3", {name: os.environ[name] for name in names})
    server.start()
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield server
    server.stop()


def committed_to(store: Store) -> int:
    """Shards that are done."""
    return len(store.list_files("manifest"))


def stored(out: str) -> dict[str, str]:
    """Hash of every shard object."""
    store = open_store(out)
    return {p.split("/")[1]: hashlib.sha256(store.read(p)).hexdigest() for p in store.list_files("shards")}


def wait_for_shards(store: Store, count: int) -> float:
    return wait_until(lambda: committed_to(store) >= count, f"{count} shards")


def test_a_server_away_then_wrong_keys_then_a_killed_driver_then_a_bad_line_lose_nothing(
    server, undisturbed, tiny_models, tmp_path, measured
):
    """One dataset, and the same command three times."""
    out, log = f"s3://{BUCKET}/thrice", tmp_path / "log"
    store = open_store(out)
    run = start(job(tiny_models, out), log)
    wait_for_shards(store, 3)
    server.stop()
    time.sleep(20)  # the fault itself
    server.start()
    before = committed_to(store)
    recovery_s = wait_for_shards(store, before + 3)
    server.stop()
    server.start(secret="another-secret-2b7e")
    changed = time.monotonic()
    assert run.wait(timeout=120) == 1
    ended_s = time.monotonic() - changed
    errors = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"bucket {BUCKET}, key thrice/" in errors[0]
    assert re.search("SignatureDoesNotMatch|403: Forbidden", errors[0])  # a HEAD has no body to say more
    server.stop()
    server.start()
    there = committed_to(store)
    assert before + 3 <= there < len(undisturbed)

    run = start(job(tiny_models, out), log)
    wait_for_shards(store, there + 3)
    run.kill()
    run.wait()
    there = committed_to(store)
    assert there < len(undisturbed)

    def fault(number: int, method: str, path: str):
        return "slow down" if number % 5 == 0 else "reset" if number % 23 == 0 else None

    with S3Proxy(server.environment["AWS_ENDPOINT_URL"], fault) as proxy:
        run = start(job(tiny_models, out), log, AWS_ENDPOINT_URL=proxy.endpoint)
        assert run.wait(timeout=300) == 0, log.read_text()
        assert proxy.faults["slow down"] > len(undisturbed) - there
        assert proxy.faults["reset"] > 2
    measured(f"S3 away for 20 s: recovery {recovery_s:.1f} s")
    measured(f"wrong keys: the run ended after {ended_s:.1f} s; {there} shards were there before the bad line")
    measured(f"S3 through a bad line: {dict(proxy.faults)} of {proxy.number} requests")
    assert stored(out) == undisturbed
    assert not verify(open_store(out)).problems


def test_a_body_that_breaks_off_is_read_again(server):
    store = open_store(f"s3://{BUCKET}/body")
    data = bytes(range(256)) * 2000
    store.put_once("shards/00000.tar", data)
    broken = []

    def fault(number: int, method: str, path: str):
        if method == "GET" and path.endswith("00000.tar") and len(broken) < 3:
            broken.append(number)
            return "cut body"
        return None

    with S3Proxy(server.environment["AWS_ENDPOINT_URL"], fault) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert open_store(store.uri).read("shards/00000.tar") == data
        assert proxy.faults["cut body"] == 3
        with pytest.raises(FileNotFoundError):
            open_store(store.uri).read("shards/00001.tar")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_goes_on(
    small_disk, undisturbed, tiny_models, capsys
):
    out = small_disk / "out"
    room = 10 * max(len(undisturbed), 1) * 4096  # for some of the shards, each of which takes pages of 4 KiB
    (small_disk / "ballast").write_bytes(bytes((4 << 20) - room // 4))
    assert main(job(tiny_models, out)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert 0 < committed(out) < len(undisturbed)
    assert digests(out).items() <= undisturbed.items()  # whole files only
    (small_disk / "ballast").unlink()
    assert main(job(tiny_models, out)) == 0
    assert digests(out) == undisturbed
    assert not verify(open_store(str(out))).problems
