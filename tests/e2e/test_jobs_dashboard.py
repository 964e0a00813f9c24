"""The dashboard of jobs: Grafana's own library reads it, and beside a running job Prometheus fills every panel."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from pathlib import Path

import pytest
from clusters import ray_document
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus import prometheus_of, values
from rendered_cluster import RenderedCluster, render_small
from runs import wait_until

DASHBOARD = json.loads((Path(__file__).parents[2] / "cluster" / "grafana_jobs.json").read_text())
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "1m")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
MORE_IMAGES_THAN_IT_CAN_MAKE = 100_000


def test_grafanas_own_library_reads_it():
    dashboard = Dashboard.from_json(DASHBOARD)
    assert dashboard.uid == "tandem-jobs"
    assert all(panel.targets and panel.description for panel in dashboard.panels)
    cells = [(panel.grid_pos.x, panel.grid_pos.y) for panel in dashboard.panels]
    assert len(set(cells)) == len(cells) == len(DASHBOARD["panels"])


@pytest.mark.slow
def test_every_query_has_an_answer_while_a_job_runs(tmp_path: Path):
    files = render_small(tmp_path, MORE_IMAGES_THAN_IT_CAN_MAKE, "s3://unused/out")
    document = ray_document((files / "rayjob.yaml").read_text())
    command = shlex.split(document["spec"]["entrypoint"])
    command[command.index("--out") + 1] = str(tmp_path / "dataset")
    (tmp_path / "cluster").mkdir()
    (tmp_path / "prometheus").mkdir()
    cluster = RenderedCluster(document, tmp_path / "cluster")
    left = dict(QUERIES)
    try:
        cluster.start()
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
    finally:
        cluster.stop()
