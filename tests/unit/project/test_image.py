"""The image: linted by hadolint, made from files that are there, and of the versions that the project has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ray.autoscaler._private.command_runner import _with_interactive

from support.clusters import CHECKED_IN, cluster_of, ray_document
from support.sources import ROOT
from tandem_cluster.render import RAY_VERSION

# What Debian's /etc/profile does to a login shell of a user other than root
DEBIAN_PROFILE = """
PATH="/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
export PATH
for i in /etc/profile.d/*.sh; do
  if [ -r $i ]; then
    . $i
  fi
done
"""

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
        assert any(name == entry or name.startswith(f"{entry}/") for entry in let_in), name
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("made", [True, False])
def test_rays_cluster_launcher_finds_the_environment_in_its_login_shells(made, tmp_path):
    """The image's line, run; then a command as `ray up` wraps it, in a home whose profile is Debian's /etc/profile."""
    (line,) = re.findall(r"&& (echo .+ > /etc/profile\.d/tandem\.sh)$", DOCKERFILE, re.M)
    (environment,) = re.findall(r"^ENV PATH=(\S+):\$PATH", DOCKERFILE, re.M)
    if made:
        subprocess.run(["sh", "-c", line.replace("/etc/profile.d", str(tmp_path))], check=True)
        assert [path.name for path in tmp_path.iterdir()] == ["tandem.sh"]
    (tmp_path / ".bash_profile").write_text(DEBIAN_PROFILE.replace("/etc/profile.d", str(tmp_path)))
    (tmp_path / ".bashrc").write_text("")
    variables = {"HOME": str(tmp_path), "PATH": f"{environment}:{os.environ['PATH']}"}
    command = " ".join(_with_interactive("echo PATH=$PATH"))
    ran = subprocess.run(
        ["bash", "-c", command], env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    (path,) = re.findall(r"^PATH=(.+)$", ran.stdout, re.M)
    assert (path.split(":")[0] == environment) is made


def test_the_base_image_can_be_pinned_by_its_digest():
    (default,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE, re.M)
    assert re.search(r"^FROM (\S+)", DOCKERFILE, re.M)[1] == "${BASE_IMAGE}"
    named = re.findall(
        r"python:\S+?-slim-\w+", DOCKERFILE.replace("${PYTHON}", re.search(r"^ARG PYTHON=(.+)$", DOCKERFILE, re.M)[1])
    )
    assert len(set(named)) == 1 and default.startswith("python:${PYTHON}-slim-"), "the comment names the default"


def test_versions_of_the_image_are_those_of_the_project():
    python = re.search(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.M)
    assert python and f"CPython {python[1]}:" in CONSTRAINTS.splitlines()[0]
    assert f"\nray=={RAY_VERSION}\n" in CONSTRAINTS
    assert not re.search(r"(torch|ray)==", DOCKERFILE), "versions stand in constraints.txt alone"
    for path in (p for p in CHECKED_IN.values() if p.parent.name == "kuberay"):
        assert cluster_of(ray_document(path.read_text()))["rayVersion"] == RAY_VERSION
    assert re.search(r"^USER 1000\nCMD \[.+\]$", DOCKERFILE.strip().rpartition("\nRUN")[2], re.M)
