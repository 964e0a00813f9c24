"""`tandem train vqvae`: an image tokenizer, on a folder of labelled pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt

from tandem.config import VqvaeConfig, to_dict
from tandem.errors import InputError
from tandem.training.carried import Weights
from tandem.training.start import new_vqvae, vqvae_from
from tandem.training.vqvae_task import VqvaeData, VqvaeTask, loaded_vqvae
from tandem.vqvae import Vqvae
from tandem_jobs.train.splits import check_size, load_splits
from tandem_jobs.train.training_options import RESUME, TrainingOptions
from tandem_jobs.train.training_run import Plan, Training, train
from tandem_workers.models.model_set import Resolved, resolve
from tandem_workers.training.shared_weights import SharedWeights

FILE = "vqvae.safetensors"
EXAMPLES = f"""examples: the embedded tokenizer
  tandem pictures --out pictures
  tandem train vqvae --data pictures --out runs/vqvae

The loss is L1 + L2 and that of the codebook, with nothing perceptual or adversarial, which suits small pictures. At 256
and 512 px its images blur: tokenize those with the published VQVAE (--vqvae vae_ch160v4096z32), which knows any
photograph.

{RESUME}  {FILE}   the average of the weights, which tokenize, train var, generate and serve load"""


class TrainVqvaeSpec(TrainingOptions):
    """Train the image tokenizer (VQVAE). The defaults made the embedded one."""

    data: Path = Field(description="folder with train/<class>/<image> and heldout/<class>/<image>")
    init: str | None = Field(None, description="weights to begin with: a file or address; default: new ones")
    steps: PositiveInt = Field(6000, description="optimiser steps")
    batch: PositiveInt = Field(16, description="pictures per step, over all workers")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW, for matrices")
    beta2: float = Field(0.99, gt=0, lt=1, description="of AdamW")
    vocab_size: PositiveInt = Field(2048, description="codes in the codebook")
    latent_channels: PositiveInt = Field(16, description="channels of a code")
    base_channels: PositiveInt = Field(128, description="channels at full resolution, a multiple of 32")
    channel_mult: tuple[PositiveInt, ...] = Field((1, 1), description="channels of each level, in base channels")
    num_res_blocks: PositiveInt = Field(1, description="residual blocks per level")
    stem_patch: PositiveInt = Field(4, description="side of the pixel patches that are first folded into channels")
    patch_nums: tuple[PositiveInt, ...] = Field((1, 2, 3, 4, 5, 6, 8), description="sides of the token maps")
    continuous_steps: int = Field(100, ge=0, description="first steps without quantisation, of a new one")

    def config(self) -> VqvaeConfig:
        names = ("vocab_size", "latent_channels", "base_channels", "channel_mult", "num_res_blocks")
        values = {name: getattr(self, name) for name in (*names, "stem_patch", "patch_nums")}
        return VqvaeConfig(num_phi=4, **values)


def run(spec: TrainVqvaeSpec) -> dict[str, Any]:
    """Train, and write OUT/vqvae.safetensors. Returns the last scores."""
    return train(spec, plan(spec))


def plan(spec: TrainVqvaeSpec) -> Plan:
    """All checks, nothing started."""
    pictures, heldout = load_splits(spec.data)
    init = resolve("vqvae", spec.init, random_weights=False) if spec.init else None
    config = spec.config()
    if init is not None:
        assert isinstance(init.config, VqvaeConfig)
        if asked := spec.model_fields_set & set(to_dict(config)):
            raise InputError(
                f"expected --init alone, got --{min(asked).replace('_', '-')} with it: a file has its own shape"
            )
        config = init.config
    check_size(pictures, config.image_size, "the tokenizer takes" if init else "these levels and patch_nums make")

    def make(mixed: bool) -> Training:
        model: Callable[[torch.device], Vqvae] = partial(new_vqvae, config, spec.seed)
        if init is not None:
            model = SharedWeights.put(weights_to_start(init, config)).vqvae
        task = VqvaeTask(model, 0 if init else spec.continuous_steps, spec.seed)
        return Training(task, VqvaeData(pictures, heldout))

    recipe = {
        "command": "train vqvae",
        "data_sha256": pictures.digest,
        "init_sha256": init.ref.sha256 if init else None,
        "continuous_steps": spec.continuous_steps,
    }
    length = (spec.steps, spec.batch, spec.lr)
    return Plan(*length, config, recipe, make, loaded_vqvae, FILE, {"classes": list(pictures.classes)})


def weights_to_start(init: Resolved, config: VqvaeConfig) -> Weights:
    with init.ref.opened() as path:
        return Weights.of(vqvae_from(path, config))
