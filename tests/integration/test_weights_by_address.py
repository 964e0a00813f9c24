"""A job whose weights are a trainer's file and a hashed address: what each role took is in its record."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.hub_server import HubServer
from support.tiny_models import tiny_var, tiny_vqvae
from support.wrapped_files import prefixed, published_tensors, trainer_file
from tandem_jobs.cli import main


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_from_a_trainers_file_and_an_address(tmp_path, out, monkeypatch):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    drafter, refiner = tiny_var(3, seed=1), tiny_var(2, seed=2)
    trainer = tmp_path / "ar-ckpt-best.pth"
    torch.save(
        trainer_file(prefixed(published_tensors(drafter), "_orig_mod."), published_tensors(tiny_vqvae())), trainer
    )
    torch.save({"model": published_tensors(refiner)}, tmp_path / "refiner.pth")
    with HubServer() as server:
        data = server.plain["/refiner.pth"] = (tmp_path / "refiner.pth").read_bytes()
        address = f"{server.endpoint}/refiner.pth#sha256={hashlib.sha256(data).hexdigest()}"
        options = ["--drafter", str(trainer), "--refiner", address, "--vqvae", str(trainer), "--out", out]
        assert main(["generate", *options, "--classes", "all", "--images", "4", "--batch", "2"]) == 0
    job = json.loads((Path(out) / "job.json").read_text())
    assert job["info"]["weights"] == {
        "drafter": f"{trainer}, part trainer.var_wo_ddp._orig_mod",
        "refiner": f"{address}, part model",
        "vqvae": f"{trainer}, part trainer.vae_local",
    }
    assert job["identity"]["weights_sha256"]["drafter"] == job["identity"]["weights_sha256"]["vqvae"]
    assert f"{trainer}, part trainer.vae_local" in (Path(out) / "README.md").read_text()
    assert main(["convert", str(trainer), str(tmp_path / "d.safetensors"), "--role", "drafter"]) == 0
    assert torch.equal(load_file(tmp_path / "d.safetensors")["pos_1LC"], drafter.pos_1LC)
