"""`--batch auto` from the command line: chosen once, and kept when the job is resumed."""

import json
import re
from pathlib import Path

import pytest

from tandem_cluster.devices import memory_here, memory_of_cluster
from tandem_jobs.cli import main

pytestmark = pytest.mark.usefixtures("ray_cluster")
AUTO = ("generate", "--classes", "all", "--images", "64", "--placement", "cpu", "--batch", "auto")


def models(files: dict[str, str]) -> list[str]:
    return [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", files[role])]


def batch_of(out: str) -> int:
    return json.loads((Path(out) / "job.json").read_text())["identity"]["decoding"]["batch"]


def test_the_nodes_of_a_cluster_tell_their_memory(monkeypatch):
    here = memory_here()
    monkeypatch.setattr(
        "tandem_cluster.devices.CGROUP_LIMIT", Path("/proc/self/oom_score_adj")
    )  # in this process alone
    assert memory_of_cluster(None) == here != memory_here()


def test_drafts_and_their_refinement_choose_for_themselves_and_a_job_that_goes_on_keeps_its_batch(
    tiny_models, tmp_path, capsys
):
    drafts, images = str(tmp_path / "drafts"), str(tmp_path / "images")
    drafter, refiner, vqvae = (models(tiny_models)[i : i + 2] for i in (0, 2, 4))
    draft = ["draft", *AUTO[1:5], "--placement", "cpu", "--batch", "auto", *drafter, *vqvae, "--out", drafts]
    draft += ["--shard-size", "16"]
    assert main([*draft, "--device-memory-gb", "16"]) == 0
    for lost in ("manifest/00001.json", "_SUCCESS"):
        (Path(drafts) / lost).unlink()
    # where less fits, another batch would make another job, which would be refused
    assert main([*draft, "--device-memory-gb", "0.0001"]) == 0
    assert main(["refine", "--drafts", drafts, "--batch", "auto", *refiner, *vqvae, "--out", images]) == 0
    said = re.findall("batch auto: (.*?)[;\n]", capsys.readouterr().err)
    chosen = "16, all that this job can use"
    assert said == [chosen, "16, as in the job that is resumed", chosen]
    assert batch_of(drafts) == batch_of(images) == 16


def test_memory_without_auto_and_too_little_memory_are_refused(tiny_models, out, capsys):
    job = [*AUTO[:-1], *models(tiny_models), "--out", out]
    job.remove("--batch")
    assert main([*job, "--device-memory-gb", "8"]) == 2
    assert "expected --batch auto with --device-memory-gb, got --batch 32" in capsys.readouterr().err
    assert main([*job, "--batch", "auto", "--shards", "0-9/32"]) == 2
    assert "expected a number for --batch with --shards" in capsys.readouterr().err
    assert main([*job, "--batch", "auto", "--device-memory-gb", "0.0001"]) == 2
    assert "GB for a single image, got 0.0001 GB" in capsys.readouterr().err
    assert not Path(out).exists()
