"""Whether the NVIDIA driver of this node is new enough for the torch that is installed: `python driver.py`.

Worker nodes run it before Ray starts. It needs only the standard library, so it also runs in images without our code.
"""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

# Oldest driver branch on Linux of each major version of CUDA (CUDA compatibility guide, minor version compatibility)
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
ANSWER_S = 60


def torch_cuda() -> str | None:
    """CUDA version of the installed torch, None for a CPU build. Does not import torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("expected torch in this image, found none")
    version: str | None = runpy.run_path(str(Path(found.origin).with_name("version.py")))["cuda"]
    return version


def driver_version() -> str:
    """The driver's version by nvidia-smi, such as 580.65.06. Raises RuntimeError with one line if there is none."""
    if not (program := shutil.which("nvidia-smi")):
        raise RuntimeError("found no nvidia-smi: the node needs NVIDIA's driver and container toolkit")
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"nvidia-smi did not answer within {ANSWER_S} s") from None
    lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
    if ran.returncode or not lines or not lines[0].partition(".")[0].isdecimal():
        raise RuntimeError(f"nvidia-smi failed: {lines[0] if lines else f'exit code {ran.returncode}'}")
    return lines[0]


def check(cuda: str | None) -> None:
    """Raise RuntimeError with one line if the driver is missing or too old for this version of CUDA."""
    if cuda is None:
        return
    major = int(cuda.partition(".")[0])
    oldest = OLDEST_DRIVERS.get(major, max(OLDEST_DRIVERS.values()))
    try:
        version = driver_version()
    except RuntimeError as error:
        raise RuntimeError(f"expected NVIDIA driver {oldest} or newer for CUDA {cuda}, {error}") from None
    if int(version.partition(".")[0]) < oldest:
        raise RuntimeError(f"expected NVIDIA driver {oldest} or newer for CUDA {cuda}, got {version}")


def main() -> int:
    try:
        check(torch_cuda())
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
