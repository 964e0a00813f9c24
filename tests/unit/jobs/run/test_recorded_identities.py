"""A command has the recorded identity, so that it resumes the dataset that another version began with it.

`tests/data/job_identities.json` was made by the code of this file at commit 03373ee, before its modules were moved. The
hashes of the weights are left out. New options add no field while they have their default: a changed identity shuts
people out of half-made datasets.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.sample_drafts import drafts_of
from support.sample_shards import sha256
from support.sources import ROOT
from tandem_jobs.draft import DraftJob, DraftSpec
from tandem_jobs.generate import GenerateJob, GenerateSpec
from tandem_jobs.options.spec import parse
from tandem_jobs.refine import RefineJob, RefineSpec

DATA = ROOT / "tests" / "data"
RECORDED = json.loads((DATA / "job_identities.json").read_text())
JOBS = {"generate": (GenerateJob, GenerateSpec), "draft": (DraftJob, DraftSpec), "refine": (RefineJob, RefineSpec)}
LABELS = ["--labels", str(DATA / "labels" / "row_settings.csv"), "--batch", "8"]
ALL = ["--classes", "all", "--images", "24", "--batch", "8", "--shard-size", "8", "--seed", "11"]
CASES = {
    "plain": ["generate", *ALL],
    "parquet": ["generate", *ALL, "--format", "parquet", "--codec", "webp", "--quality", "80", "--keep-tokens"],
    "prepared": ["generate", *ALL, "--kernels", "plain", "--fold-adaln", "--threads", "2", "--cuda-graphs"],
    "int8": ["generate", *ALL, "--int8", "--dtype", "bfloat16"],
    "sampled": ["generate", *ALL, "--draft-steps", "3", "--cfg", "2", "--top-k", "5", "--temperatures", "2,1"],
    "named": ["generate", *ALL, "--class-names", "numbers"],
    "rows": ["generate", *LABELS],
    "drafts": ["draft", *ALL],
    "drafts of rows": ["draft", *LABELS],
    "refined": ["refine", "--batch", "8", "--codec", "jpeg"],
}


def identities(name: str, folder: Path, models: dict[str, str]) -> list[dict]:
    """On CPUs and, but for int8, on GPUs, as `job.json` keeps them."""
    command, *options = CASES[name]
    if command == "refine":
        drafts_of(folder / "drafts", 8, vqvae=sha256(Path(models["vqvae"]).read_bytes()))
        options += ["--drafts", str(folder / "drafts"), "--refiner", models["refiner"], "--vqvae", models["vqvae"]]
    kind, spec = JOBS[command]
    job = kind(parse(spec, [*options, "--out", str(folder / "out")], ""))
    devices = (False,) if "--int8" in options else (False, True)
    found = [json.loads(json.dumps(job.identity(on_real_gpus))) for on_real_gpus in devices]
    for identity in found:
        for part in (identity, identity.get("drafts", {})):
            part.pop("weights_sha256", None)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_command_has_the_identity_of_before(name, tmp_path, tiny_models):
    assert identities(name, tmp_path, tiny_models) == RECORDED[name]
