"""Drafters on one kind of node, refiners on another: by profiles, and by labels that are given, though one is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.runs import digests, job
from support.sources import PYTHONPATH, ROOT
from tandem_cluster.profile_file import Profile, StageTime, write_profile
from tandem_workers.dataset.verify import verify
from tandem_workers.storage.places import open_store

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
    both = [part for path in profiles for part in ("--profile", path)]
    on = ["--drafters-on", f"{LABEL}=H100", "--refiners-on", f"{LABEL}=L20"]
    jobs = [
        job(tiny_models, folder / "planned", *both),
        job(tiny_models, folder / "nowhere", "--placement", "split", *on[:3], f"{LABEL}=B200"),
        job(tiny_models, folder / "unknown", "--profile", profiles[0]),
    ]
    struck = job(tiny_models, folder / "asked", "--placement", "split", *on)
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    script = [sys.executable, str(ROOT / "tests/support/two_nodes.py"), json.dumps(jobs), json.dumps(struck)]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_a_planned_run_has_drafters_and_refiners_on_the_nodes_of_their_profiles(outcome):
    _, found = outcome
    run = found["runs"][0]
    assert run["code"] == 0, run["log"]
    for stage, kind in (("draft", "H100"), ("refine", "L20")):
        replicas = run["summary"]["stages"][stage]["replicas"]
        assert len(replicas) == 1
        assert {replica.split("/")[0] for replica in replicas} == {found["nodes"][kind][:8]}
    assert "placement split: 1 drafters, 1 refiners, one GPU each (planned: 1.0 images/s predicted)" in run["log"]
    assert "next best: colocated" in run["log"]


def test_a_run_outlives_a_lost_node_and_says_what_it_waits_for(outcome, measured):
    """Drafters and refiners stay on the nodes whose labels were asked for."""
    folder, found = outcome
    run = found["struck"]
    measured(f"node lost: reported after {run['reported_s']:.0f} s, recovery {run['recovery_s']:.0f} s")
    assert run["code"] == 0, run["log"]
    assert run["reported_s"] < 30
    replicas = {s: run["summary"]["stages"][s]["replicas"] for s in ("draft", "refine")}
    on = {stage: {replica.split("/")[0] for replica in names} for stage, names in replicas.items()}
    assert on == {
        "draft": {found["nodes"]["H100"][:8]},
        "refine": {found["nodes"]["L20"][:8], found["replacement"][:8]},
    }
    assert "waiting: 1 of 1 refine replicas: each needs a GPU, and there are 0 nodes of " in run["log"]
    assert not verify(open_store(str(folder / "asked"))).problems


def test_the_bytes_are_those_of_one_machine(undisturbed, outcome):
    folder, _ = outcome
    assert digests(folder / "asked") == digests(folder / "planned") == undisturbed


def test_what_no_node_offers_is_refused_before_anything_starts(outcome):
    folder, found = outcome
    nowhere, unknown = found["runs"][1:]
    assert nowhere["code"] == unknown["code"] == 2
    assert f"error: refiners: expected nodes of {LABEL}=B200 with GPUs, found none" in nowhere["log"]
    assert "expected profiles of the cluster's GPUs (1 h100, 1 l20), got those of h100" in unknown["log"]
    assert not (folder / "nowhere").exists()
    assert not (folder / "unknown").exists()
