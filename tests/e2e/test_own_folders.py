"""The wheel together with a user's project that has folders named jobs, workers and cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.real_cluster import RealCluster, bare
from support.sources import ROOT

pytestmark = pytest.mark.slow
FOLDERS = ("jobs", "workers", "cluster")
SIZE = ["--classes", "face", "--images", "2", "--batch", "2", "--shard-size", "2", "--placement", "cpu"]
# The driver of a Ray job: it imports the user's modules and ours, and so does a task
PROGRAM = f"""
import json, sys
import cluster.mine, jobs.mine, workers.mine
import ray, tandem_jobs.cli

code = tandem_jobs.cli.main(["generate", *{SIZE}, "--out", sys.argv[1]])

@ray.remote
def imported():
    import cluster.mine, jobs.mine, workers.mine
    import tandem_cluster, tandem_jobs, tandem_workers
    return [jobs.mine.NAME, workers.mine.NAME, cluster.mine.NAME], tandem_workers.__file__

ray.init(log_to_driver=False)
names, place = ray.get(imported.remote())
print(json.dumps({{"code": code, "names": names, "place": place}}))
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RealCluster]:
    """One node whose Python has the wheel."""
    cluster = RealCluster(tmp_path)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    install = ["--python", str(cluster.python), "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
        (folder / name / "mine.py").write_text(f"NAME = 'my {name}'\n")
    (folder / "program.py").write_text(PROGRAM)
    return folder


def test_a_users_own_jobs_workers_and_cluster_are_not_in_the_way(cluster, project, tmp_path):
    tandem = cluster.python.with_name("tandem")
    alone = subprocess.run(
        [tandem, "generate", *SIZE, "--out", str(tmp_path / "alone")],
        cwd=project, env=bare(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    submit = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", str(project)]
    process = cluster.run(*submit, "--", "python", "program.py", str(tmp_path / "job"), cwd=project)
    printed, errors = process.communicate(timeout=240)
    assert process.returncode == 0, printed + errors
    found = json.loads(next(line for line in printed.splitlines() if line.startswith('{"code"')))
    assert (found["code"], found["names"]) == (0, [f"my {name}" for name in FOLDERS])
    assert Path(found["place"]).is_relative_to(cluster.python.parents[1])
    for out in ("alone", "job"):
        assert (tmp_path / out / "_SUCCESS").exists()
