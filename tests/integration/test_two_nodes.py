"""Drafters on one kind of node, refiners on another: by labels that are given, and by profiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, digests, job

from cluster.profile import Profile, StageTime, write_profile

pytestmark = pytest.mark.slow
LABEL = "ray.io/accelerator-type"


def profile(folder: Path, kind: str, draft_s: float, refine_s: float) -> str:
    times = (
        StageTime(stage="draft", draft_steps=3, batch=1, seconds=draft_s),
        StageTime(stage="refine", draft_steps=3, batch=1, seconds=refine_s),
        StageTime(stage="decode", batch=1, seconds=0.0),
    )
    write_profile(Profile(name=kind, kind=kind, num_scales=4, stages=times), folder / f"{kind}.json")
    return str(folder / f"{kind}.json")


@pytest.fixture(scope="module")
def outcome(tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    profiles = [profile(folder, "h100", 1.0, 2.0), profile(folder, "l20", 9.0, 1.0)]
    three = [part for path in profiles for part in ("--profile", path)]
    on = ["--drafters-on", f"{LABEL}=H100", "--refiners-on", f"{LABEL}=L20"]
    jobs = [
        job(tiny_models, folder / "asked", "--placement", "split", *on),
        job(tiny_models, folder / "planned", *three),
        job(tiny_models, folder / "nowhere", "--placement", "split", *on[:3], f"{LABEL}=B200"),
        job(tiny_models, folder / "unknown", "--profile", profiles[0]),
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'code'}:{ROOT}:{ROOT / 'tests'}"}
    script = [sys.executable, str(ROOT / "tests/two_nodes.py"), json.dumps(jobs)]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=900, check=True)
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("number", "name"), [(0, "asked"), (1, "planned")])
def test_drafters_and_refiners_are_on_the_nodes_of_their_labels(number, name, outcome):
    _, found = outcome
    run = found["runs"][number]
    assert run["code"] == 0, run["log"]
    for stage, kind in (("draft", "H100"), ("refine", "L20")):
        replicas = run["summary"]["stages"][stage]["replicas"]
        assert len(replicas) == 2
        assert {replica.split("/")[0] for replica in replicas} == {found["nodes"][kind][:8]}
    if name == "planned":
        assert "placement split: 2 drafters, 2 refiners, one GPU each (planned: 2.0 images/s predicted)" in run["log"]
        assert "next best: colocated" in run["log"]


def test_the_bytes_are_those_of_one_machine(undisturbed, outcome):
    folder, _ = outcome
    assert digests(folder / "asked") == digests(folder / "planned") == undisturbed


def test_what_no_node_offers_is_refused_before_anything_starts(outcome):
    folder, found = outcome
    nowhere, unknown = found["runs"][2:]
    assert nowhere["code"] == unknown["code"] == 2
    assert f"error: refiners: expected nodes of {LABEL}=B200 with GPUs, found none" in nowhere["log"]
    assert "expected profiles of what the cluster has (2 h100, 2 l20), got those of h100" in unknown["log"]
    assert not (folder / "nowhere").exists()
    assert not (folder / "unknown").exists()
