"""The image: linted by hadolint, made from files that are there, and of the versions that the project has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from clusters import CHECKED_IN, ROOT, cluster_of, ray_document

from cluster.render import RAY_VERSION

DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def test_the_linter_of_the_image_works_and_finds_nothing(tmp_path):
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint comes with the extra dev")
    clean = subprocess.run([linter, ROOT / "cluster" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (clean.returncode, clean.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("USER 1000", "USER root"))
    assert subprocess.run([linter, tmp_path / "Dockerfile"], capture_output=True, check=False).returncode == 1


def test_what_the_image_copies_is_there_and_reaches_docker():
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for word in line.split()]
    copied += re.findall(r"--mount=type=bind,source=([^,]+)", DOCKERFILE)
    assert {"constraints.txt", "pyproject.toml", "code/tandem", "workers", "jobs", "cluster"} <= set(copied)
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name in let_in, name
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_versions_of_the_image_are_those_of_the_project():
    python = re.search(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.M)
    assert python and f"CPython {python[1]}:" in CONSTRAINTS.splitlines()[0]
    assert f"\nray=={RAY_VERSION}\n" in CONSTRAINTS
    assert not re.search(r"(torch|ray)==", DOCKERFILE), "versions stand in constraints.txt alone"
    for path in (p for p in CHECKED_IN.values() if p.parent.name == "kuberay"):
        assert cluster_of(ray_document(path.read_text()))["rayVersion"] == RAY_VERSION
    assert re.search(r"^USER 1000\nCMD \[.+\]$", DOCKERFILE.strip().rpartition("\nRUN")[2], re.M)
