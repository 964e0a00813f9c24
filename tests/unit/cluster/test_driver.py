"""The check of a node's NVIDIA driver, with an nvidia-smi that is a script and a torch that is one file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.clusters import CHECKED_IN, check_launcher, cluster_of, ray_document
from support.sources import ROOT
from tandem_cluster.driver import OLDEST_DRIVERS

SCRIPT = ROOT / "cluster" / "tandem_cluster" / "driver.py"


def run(folder: Path, smi: str | None, cuda: str | None) -> tuple[int, str]:
    """Exit code and stderr. `smi`: the shell script that stands for nvidia-smi."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (folder / "torch" / "version.py").write_text(f"cuda = {cuda!r}\n")
    if smi is not None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
        (folder / "nvidia-smi").chmod(0o755)
    variables = os.environ | {"PATH": str(folder), "PYTHONPATH": str(folder)}
    ran = subprocess.run([sys.executable, SCRIPT], env=variables, capture_output=True, text=True, check=False)
    assert ran.stdout == ""
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(
    ("smi", "cuda"),
    [("echo 580.65.06", "13.0"), ("echo 595.10", "13.2"), ("echo 525.60.13; echo 525.60.13", "12.8"), (None, None)],
)
def test_a_driver_that_is_new_enough_is_passed_without_a_word(smi, cuda, tmp_path):
    assert run(tmp_path, smi, cuda) == (0, "")


@pytest.mark.parametrize(
    ("smi", "cuda", "line"),
    [
        ("echo 470.57.02", "13.0", "expected NVIDIA driver 580 or newer for CUDA 13.0, got 470.57.02"),
        ("echo 579.99.99", "14.1", "expected NVIDIA driver 580 or newer for CUDA 14.1, got 579.99.99"),
        ("echo 470.57.02", "12.6", "expected NVIDIA driver 525 or newer for CUDA 12.6, got 470.57.02"),
        (
            None,
            "13.0",
            "expected NVIDIA driver 580 or newer for CUDA 13.0, found no nvidia-smi: the node needs NVIDIA's driver "
            "and container toolkit",
        ),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "13.0",
            "expected NVIDIA driver 580 or newer for CUDA 13.0, nvidia-smi failed: Failed to initialize NVML: "
            "Driver/library version mismatch",
        ),
        ("exit 9", "13.0", "expected NVIDIA driver 580 or newer for CUDA 13.0, nvidia-smi failed: exit code 9"),
    ],
)
def test_a_driver_that_is_too_old_or_away_is_one_line_and_exit_code_1(smi, cuda, line, tmp_path):
    assert run(tmp_path, smi, cuda) == (1, f"error: {line}\n")


def test_workers_check_their_driver_before_ray_starts():
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
    assert "COPY cluster/tandem_cluster/driver.py /opt/check_driver.py" in dockerfile
    assert f"driver {OLDEST_DRIVERS[13]} or newer" in dockerfile.partition("\nARG")[0]
    launcher = check_launcher(CHECKED_IN["launcher.yaml"].read_text())
    assert launcher["worker_setup_commands"][-1] == "python /opt/check_driver.py"
    assert not any("check_driver" in command for command in launcher["setup_commands"]), "the head has no GPU"
    for name in ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml"):
        for group in cluster_of(ray_document(CHECKED_IN[name].read_text()))["workerGroupSpecs"]:
            spec = group["template"]["spec"]
            (first,) = spec["initContainers"]
            assert first["command"] == ["python", "/opt/check_driver.py"]
            assert first["image"] == spec["containers"][0]["image"]
            assert first["resources"]["limits"]["nvidia.com/gpu"] == "1"
