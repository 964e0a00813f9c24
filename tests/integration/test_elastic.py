"""A run that starts on a cluster without nodes, loses one that came, and gives all of them back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from support.runs import digests, job
from support.sources import PYTHONPATH, ROOT
from tandem_jobs.cli import main
from tandem_workers.dataset.verify import verify
from tandem_workers.storage.places import open_store

SHARDS = 300
SIZE = ("--images", str(SHARDS), "--dtype", "float32")
RANGES = ("--min-drafters", "1", "--max-drafters", "2", "--max-refiners", "2")


@pytest.fixture(scope="module")
def outcome(tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("e")  # short: Ray's sockets are in it
    out = str(folder / "out")
    # The tests' own Ray turns authentication on in this process. A driver that checks tokens refuses this cluster's
    # calls, which have none, and its actors are then taken for unwanted.
    path = PYTHONPATH
    environment = os.environ | {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"}
    argv = json.dumps(job(tiny_models, out, *SIZE, *RANGES))
    script = [sys.executable, str(ROOT / "tests/support/elastic.py"), argv, out, str(folder), str(SHARDS)]
    done = subprocess.run(script, stdout=subprocess.PIPE, text=True, env=environment, timeout=600, check=True)
    return out, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_nodes_come_are_used_are_lost_are_replaced_and_go(outcome, measured):
    _, found = outcome
    measured("elastic: " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in found["seconds"].items()))
    log, seen, lost = found["log"], found["seen"], found["lost"]
    assert found["code"] == 0, log
    assert "Traceback" not in log
    assert seen["start"] == {}
    assert sorted(seen["full"].values()) == ["drafter", "drafter", "refiner", "refiner"]
    assert found["committed_when_lost"] < SHARDS
    kinds = {node[:8]: name for node, name in (seen["full"] | seen["replaced"]).items()}
    for stage, kind in (("draft", "drafter"), ("refine", "refiner")):
        replicas = found["summary"]["stages"][stage]["replicas"]
        assert {kinds[replica.split("/")[0]] for replica in replicas} == {kind}
    replacement = set(seen["replaced"]) - set(seen["full"])
    assert {lost[:8], *(node[:8] for node in replacement)} <= {replica.split("/")[0] for replica in replicas}
    assert found["summary"]["most_ready_replicas"] == {"draft": 2, "refine": 2}
    assert found["seconds"]["away"] < 20


@pytest.mark.slow
def test_it_says_what_it_starts_with_and_what_it_waits_for(outcome):
    log = outcome[1]["log"]
    assert "Ray on 1 node: 0 CPUs, 0 GPUs" in log
    assert "placement split: 1 to 2 drafters, 1 to 2 refiners, one GPU each (as nodes come)" in log
    assert re.search(r"started with [12] of 1 to 2 draft, [12] of 1 to 2 refine replicas; more join", log)


@pytest.mark.slow
def test_the_bytes_are_those_of_an_undisturbed_run_on_fixed_replicas(outcome, tiny_models, tmp_path, ray_cluster):
    """A sixth of them: from shortly before the node is lost to when there is another one."""
    out, found = outcome
    first = min(max(0, found["committed_when_lost"] - 10), SHARDS - 50)
    fixed = job(tiny_models, tmp_path / "fixed", *SIZE, "--placement", "split", "--drafters", "1", "--refiners", "1")
    assert main([*fixed, "--shards", f"{first}-{first + 49}/{SHARDS}"]) == 0
    again = digests(tmp_path / "fixed")
    assert len(again) == 50
    assert again.items() <= digests(out).items()
    assert not verify(open_store(out)).problems


@pytest.mark.slow
def test_drafters_whose_work_is_done_give_their_nodes_back_while_refiners_go_on(outcome, measured):
    releases = outcome[1]["releases"]
    for release in releases:
        measured(f"drafter's node gone after {release['drafter_gone']:.1f} s, the run took {release['end']:.1f} s")
    assert releases[-1]["early"], releases


def test_stages_that_compete_for_the_same_gpus_share_them(tiny_models, out, ray_cluster, capsys):
    assert main(job(tiny_models, out, "--min-drafters", "2", "--max-drafters", "4", "--max-refiners", "4")) == 0
    printed = capsys.readouterr()
    ready = json.loads(printed.out.splitlines()[-1])["most_ready_replicas"]
    assert ready["draft"] >= 2
    assert ready["refine"] >= 1
    assert "placement split: 2 to 4 drafters, 1 to 4 refiners, one GPU each (as nodes come)" in printed.err


def test_more_than_there_will_ever_be_is_refused(tiny_models, out, ray_cluster, capsys):
    assert main(job(tiny_models, out, "--min-drafters", "4", "--max-drafters", "4", "--max-refiners", "4")) == 2
    assert "4 drafters and 1 refiners to start with: expected at most 4 GPUs, got 5" in capsys.readouterr().err
