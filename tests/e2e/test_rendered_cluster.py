"""Rendered files at work: their flags start nodes, their probes say yes, their job and their endpoint run there, and
Prometheus beside a job fills every panel of its dashboard."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from support.clusters import ray_document
from support.ports import free_port
from support.prometheus import prometheus_of, values
from support.rendered_cluster import BIN, RenderedCluster, render_small
from support.runs import wait_until
from support.served import Served
from support.sources import ROOT

BUCKET = "rendered"
MORE_IMAGES_THAN_IT_CAN_MAKE = "100000"
NODES = "import ray, json; ray.init(); print(json.dumps({n['NodeID']: n['Labels'] for n in ray.nodes()}))"
REPLICAS = """
import json, ray
from ray.util.state import list_actors
ray.init(logging_level="ERROR")
actors = list_actors(detail=True, limit=1000)
print(json.dumps([[a.class_name, a.node_id] for a in actors if a.state == "ALIVE"]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_small(tmp_path_factory.mktemp("rendered"), 24, f"s3://{BUCKET}/out")


@pytest.fixture(scope="module")
def cluster(files: Path, s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RenderedCluster]:
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    document = ray_document((files / "rayjob.yaml").read_text())
    cluster = RenderedCluster(document, tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.slow
def test_the_job_runs_each_role_on_its_nodes(files: Path, cluster: RenderedCluster):
    entrypoint = ray_document((files / "rayjob.yaml").read_text())["spec"]["entrypoint"]
    ran = cluster.run(shlex.split(entrypoint))
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert (summary["images"], summary["placement"]) == (24, "split")
    labels = nodes(cluster)
    for stage, role, kind in (("draft", "drafter", "H100"), ("refine", "refiner", "L40S")):
        (replica,) = summary["stages"][stage]["replicas"]
        (where,) = [found for node, found in labels.items() if node.startswith(replica.partition("/")[0])]
        assert (where["tandem/role"], where["ray.io/accelerator-type"]) == (role, kind)
    assert cluster.run([str(BIN / "tandem"), "verify", f"s3://{BUCKET}/out"]).returncode == 0


@pytest.mark.slow
def test_every_query_of_the_dashboard_has_an_answer_while_a_job_runs(
    files: Path, cluster: RenderedCluster, tmp_path: Path
):
    command = shlex.split(ray_document((files / "rayjob.yaml").read_text())["spec"]["entrypoint"])
    command[command.index("--out") + 1] = str(tmp_path / "dataset")
    command[command.index("--images") + 1] = MORE_IMAGES_THAN_IT_CAN_MAKE
    left = {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "1m")
        for panel in json.loads((ROOT / "cluster" / "grafana_jobs.json").read_text())["panels"]
        for target in panel["targets"]
    }
    (tmp_path / "prometheus").mkdir()
    targets = [f"127.0.0.1:{node.metrics}" for node in cluster.nodes]
    with prometheus_of(targets, tmp_path / "prometheus") as address, (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, env=cluster.environment)

        def shown() -> bool:
            assert job.poll() is None, (tmp_path / "log").read_text()
            for title, query in list(left.items()):
                if any(math.isfinite(value) for value in values(address, query)):
                    del left[title]
            return not left

        try:
            wait_until(shown, f"answers to {left}", seconds=300)
        finally:
            job.terminate()
            job.wait(timeout=60)


@pytest.mark.slow
def test_the_endpoint_runs_each_role_on_its_nodes(files: Path, cluster: RenderedCluster):
    port = free_port()
    config = (files / "serve.yaml").read_text().replace("port: 8000", f"port: {port}").replace("0.0.0.0", "127.0.0.1")
    (files / "local.yaml").write_text(config)
    address = f"http://127.0.0.1:{cluster.dashboard}"
    ran = cluster.run([str(BIN / "serve"), "deploy", "--address", address, str(files / "local.yaml")])
    assert ran.returncode == 0, ran.stderr

    served = Served(cluster.nodes[0].process, f"http://127.0.0.1:{port}", files / "log")

    def answers() -> bool:
        try:
            status, _ = served.post(prompt="face", seed=1)
        except (OSError, ValueError):  # no proxy yet, or no application behind it
            return False
        return status == 200

    wait_until(answers, "an image", seconds=240)
    found = json.loads(cluster.run([str(BIN / "python"), "-c", REPLICAS]).stdout.splitlines()[-1])
    labels = nodes(cluster)
    roles = {name.split(":")[2]: labels[node].get("tandem/role") for name, node in found if ":tandem:" in name}
    assert (roles["Drafter"], roles["Refiner"]) == ("drafter", "refiner")


def nodes(cluster: RenderedCluster) -> dict[str, dict[str, str]]:
    return json.loads(cluster.run([str(BIN / "python"), "-c", NODES]).stdout.splitlines()[-1])
