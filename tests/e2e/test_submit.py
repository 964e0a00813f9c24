"""Jobs on a cluster of two real nodes that have none of our code: submitted, stopped, resumed, shared, kept secret."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import requests

from support.real_cluster import RealCluster
from support.runs import committed, job, wait_until
from support.s3_proxy import S3Proxy
from support.sources import ROOT

pytestmark = pytest.mark.slow
BUCKET = "submitted"
TANDEM = Path(sys.executable).with_name("tandem")


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def cluster(
    proxy: S3Proxy, s3_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealCluster]:
    cluster = RealCluster(tmp_path_factory.mktemp("cluster"), **(s3_environment | {"AWS_ENDPOINT_URL": proxy.endpoint}))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def submit(cluster: RealCluster, *argv: str) -> subprocess.Popen[str]:
    """`tandem submit` with these arguments."""
    return cluster.run("tandem", "submit", "--address", cluster.dashboard, *argv)


def ended(process: subprocess.Popen[str], code: int, timeout: float = 180) -> tuple[dict, str]:
    """The JSON line and stderr of a command that ends with this code."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == code, out + err
    return json.loads(out.splitlines()[-1]) if out else {}, err


def readme_line() -> str:
    text = (ROOT / "docs" / "GUIDE.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ray job submit .*python -m tandem_jobs generate.*$", text, re.M)
    return line


def verified(out: Path | str) -> bool:
    done = subprocess.run([TANDEM, "verify", str(out)], capture_output=True, text=True)
    return done.returncode == 0 and json.loads(done.stdout)["problems"] == []


def test_the_line_of_the_readme(cluster, tmp_path):
    out = tmp_path / "out"
    line = shlex.split(readme_line())
    line[line.index("--address") + 1] = cluster.dashboard
    line[line.index("--out") + 1] = str(out)
    process = cluster.run(*line)
    printed, errors = process.communicate(timeout=180)
    assert process.returncode == 0, printed + errors
    summary = json.loads(next(text for text in printed.splitlines() if text.startswith("{")))
    assert sum(len(s["replicas"]) for name, s in summary["stages"].items() if name in ("draft", "refine")) == 2
    assert verified(out)  # that a cluster makes the bytes of one machine: in test_two_nodes.py


def test_every_outcome_has_its_exit_code(cluster, tiny_models, tmp_path):
    """Of a job that is stopped, and goes on as two jobs that share its dataset."""
    out = tmp_path / "out"
    the_job = job(tiny_models, out, images=288)  # it outlasts the way of a request to stop
    process = submit(cluster, "--follow", "--stop-on-interrupt", "--", *the_job)
    wait_until(lambda: committed(out) >= 2, "two shards")
    process.send_signal(signal.SIGINT)
    result, errors = ended(process, 3)
    assert result["status"] == "STOPPED" and "was stopped" in errors
    assert "stopping (SIGTERM): committed shards are kept" in errors
    there = committed(out)
    assert 2 <= there < 144 and not (out / "_SUCCESS").exists()
    incomplete, errors = ended(submit(cluster, "--wait", "--", "verify", str(out)), 1)
    assert incomplete["status"] == "FAILED" and "shards are missing" in errors

    left = submit(cluster, "--wait", "--", *the_job, "--shards", "0-143/288")
    wait_until(lambda: committed(out) > there, "another shard")
    left.send_signal(signal.SIGINT)
    waited = submit(cluster, "--wait", "--", *the_job, "--shards", "144-287/288")  # beside the one that goes on
    _, errors = ended(left, 130)
    assert f"to stop it: ray job stop --address {cluster.dashboard}" in errors
    result, _ = ended(waited, 0)
    assert result["summary"]["images"] == 144
    parts = result["summary"].get("start_up_s")
    assert parts is None or set(result["start_up_s"]) == {"submit", "job_start", *parts}
    wait_until((out / "_SUCCESS").exists, "the other half")
    assert verified(out)
    assert "--shards" not in (out / "README.md").read_text()
    result, errors = ended(submit(cluster, "--wait", "--", *the_job, "--seed", "4"), 2)
    assert result["exit_code"] == 2 and "decoding.seed: there 3, here 4" in errors


def test_weights_reach_each_node_once_and_secrets_nobody(cluster, proxy, tiny_models, s3_environment, tmp_path):
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    weights = {role: f"s3://{BUCKET}/{role}.safetensors" for role in tiny_models}
    for role, path in tiny_models.items():
        client.upload_file(path, BUCKET, f"{role}.safetensors")
    (tmp_path / "rows.csv").write_text("label\n" + "0\n1\n" * 8)
    process = cluster.run(
        "tandem", "submit", "--address", cluster.dashboard, "--follow", "--env", "OMP_NUM_THREADS=1", "--", "generate",
        *(part for role, address in weights.items() for part in (f"--{role}", address)),
        *("--labels", "rows.csv", "--batch", "1", "--shard-size", "1", "--placement", "split"),
        *("--drafters-on", "node=0", "--refiners-on", "node=1", "--out", f"s3://{BUCKET}/out"),
        cwd=tmp_path,
    )  # fmt: skip
    result, log = ended(process, 0)
    # two replicas on each node, and on node 0 the driver, which looks at all
    gets = {role: proxy.seen["GET", f"/{BUCKET}/{role}.safetensors"] for role in weights}
    assert gets == {"drafter": 1, "refiner": 2, "vqvae": 2}
    there = [{path.stem for path in cache.rglob("*.safetensors")} for cache in cluster.caches]
    assert there == [{"drafter", "refiner", "vqvae"}, {"refiner", "vqvae"}]
    done = subprocess.run([TANDEM, "verify", f"s3://{BUCKET}/out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    secrets = {s3_environment["AWS_SECRET_ACCESS_KEY"].encode(), cluster.token.encode()}
    shown = {"the command's log": log.encode(), "its result": json.dumps(result).encode()}
    headers = {"Authorization": f"Bearer {cluster.token}"}
    lists = ("actors", "tasks", "nodes", "jobs", "workers", "runtime_envs", "placement_groups", "objects")
    pages = [f"/api/v0/{name}?detail=1&limit=1000" for name in lists]
    for page in [
        *pages,
        "/api/jobs/",
        f"/api/jobs/{result['submission_id']}/logs",
        "/nodes?view=summary",
    ]:
        answer = requests.get(cluster.dashboard + page, headers=headers, timeout=30)
        assert answer.ok and len(answer.content) > 20, page
        shown[page] = answer.content
    for path in (path for folder in cluster.logs for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            shown[str(path)] = path.read_bytes()
    assert any(name.endswith("raylet.out") for name in shown)
    # what is there is what was asked for, so that looking for the secrets means something
    assert result["submission_id"].encode() in shown["/api/jobs/"] and b"OMP_NUM_THREADS" in shown["/api/jobs/"]
    assert [name for name, content in shown.items() if any(secret in content for secret in secrets)] == []


def test_without_the_token_nothing_is_submitted(cluster, tmp_path):
    argv = ("generate", "--classes", "all", "--images", "2", "--out", str(tmp_path / "out"))
    process = cluster.run(
        "tandem", "submit", "--address", cluster.dashboard, "--", *argv, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN=""
    )
    _, errors = ended(process, 2)
    assert "refuses: Authentication required" in errors and "hint: set RAY_AUTH_MODE=token" in errors
