"""`make` sets up by uv where it is installed, else by pip; TORCH= names the wheels of torch in both."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = ("make", "sh", "grep", "awk", "rm")


def dry_run(tmp_path: Path, has_uv: bool, *arguments: str) -> str:
    """What `make` would do in a checkout without an environment, its PATH holding the tools above and no others."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in TOOLS:
        (programs / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    if has_uv:
        (programs / "uv").write_text("#!/bin/sh\n")
        (programs / "uv").chmod(0o755)
    command = ["make", "--dry-run", f"VENV={tmp_path}/venv", *arguments]
    environment = {"PATH": str(programs)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("has_uv", "environment", "install", "wheels"),
    [
        (True, "uv venv -q --seed", "uv pip install", "--torch-backend cpu"),
        (False, "python3 -m venv", "python -m pip", "--extra-index-url https://download.pytorch.org/whl/cpu"),
    ],
    ids=["uv", "pip"],
)
def test_make_installs_by_uv_where_it_is_there(tmp_path, has_uv, environment, install, wheels):
    lines = dry_run(tmp_path, has_uv, "generate", "TORCH=cpu").splitlines()
    assert any(environment in line for line in lines)
    (line,) = [line for line in lines if " -e ." in line]
    assert install in line
    assert "-c constraints.txt" in line
    text = "\n".join(lines)
    assert wheels in text
    assert (" -m pip " in text) != has_uv


def test_without_torch_the_wheels_are_those_of_the_registry(tmp_path):
    text = dry_run(tmp_path, False, "generate")
    assert "download.pytorch.org" not in text
