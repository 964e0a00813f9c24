"""Plans as files, and what the render command makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.clusters import check_kubernetes_file, check_launcher, check_serve
from tandem_cluster.launcher import AMI_PARAMETER
from tandem_jobs import cli

DATASET = ("--dataset", "s3://bucket/out")


AMI = ("--ami", f"resolve:ssm:{AMI_PARAMETER}")


def option(mode: str, drafters: dict[str, int], refiners: dict[str, int] | None = None) -> dict[str, Any]:
    counts = {"drafters": drafters, "refiners": refiners or drafters}
    return {"mode": mode, "draft_steps": 5, "batch": 16, **counts, "images_per_s": 10.0, "hours": 1.0}


def plan_file(folder: Path, best: dict[str, Any], *others: dict[str, Any], images: float = 1000.5) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps({"request": {"images": images}, "best": best, "runners_up": list(others)}) + "\n")
    return path


def render(plan: Path, out: Path, *more: str) -> dict[str, str]:
    """The files that the command has written."""
    assert cli.main(["cluster", "render", "--plan", str(plan), "--out", str(out), *more]) == 0
    return {path.name: path.read_text() for path in out.iterdir()}


def check(files: dict[str, str]) -> None:
    for name, text in files.items():
        if name.startswith("ray"):
            check_kubernetes_file(text)
    if "serve.yaml" in files:
        check_serve(files["serve.yaml"])
    if "launcher.yaml" in files:
        check_launcher(files["launcher.yaml"])
