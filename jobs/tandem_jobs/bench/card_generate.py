"""The last section of `tandem bench card`: `tandem generate` itself, in processes of its own, from weights in files."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tandem.assembly import assemble_vqvae
from tandem.checkpoints.weights import save_checkpoint
from tandem.vqvae import Vqvae
from tandem_jobs.bench.gpu_models import Size, random_on

SHARD_BATCHES = 8
KEPT = ("images", "images_per_s", "steady_images_per_s", "start_up_s", "warnings", "fallbacks")


def generate(size: Size, device: torch.device, images: int, limit_s: float) -> dict[str, Any]:
    """Labels to files on one card, colocated: images a second, and seconds until the first shard."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(size, device, folder)
        command = [sys.executable, "-m", "tandem_jobs", "generate"]
        command += ["--out", str(folder / "out"), "--images", str(images)]
        for role in ("drafter", "refiner", "vqvae"):
            command += [f"--{role}", str(folder / f"{role}.safetensors")]
        batch = size.batches[0]
        command += ["--classes", f"0-{size.drafter.num_classes - 1}", "--class-names", "numbers"]
        command += ["--draft-steps", str(size.draft_steps), "--batch", str(batch)]
        command += ["--shard-size", str(SHARD_BATCHES * batch), "--placement", "colocated", "--logical-gpus", "1"]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        except subprocess.TimeoutExpired:
            return {"left_out": f"not finished after {limit_s:.0f} s (--budget-s)"}  # slow is not an error
        if ran.returncode:
            return {"wrong": [f"exit code {ran.returncode}: {cause_in(ran.stderr)}"]}
        summary = json.loads(ran.stdout.strip().splitlines()[-1])
        return {key: summary[key] for key in KEPT if key in summary}


def cause_in(said: str) -> str:
    """The error that a command has said, else its last line."""
    lines = said.strip().splitlines() or ["nothing was said"]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])


def write_models(size: Size, device: torch.device, folder: Path) -> None:
    """Random weights as files."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for role, config in (("drafter", size.drafter), ("refiner", size.refiner)):
        save_checkpoint(folder / f"{role}.safetensors", random_on(device, config, dtype, None), {}, dtype)
    with torch.device(device):
        values = Vqvae(size.vqvae).state_dict()
    vqvae = assemble_vqvae(size.vqvae, values.__getitem__, torch.float32, device, None)
    save_checkpoint(folder / "vqvae.safetensors", vqvae, {}, torch.float32)
