"""`tandem train var`: a transformer, from nothing or on from a checkpoint, on a set of token maps."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from tandem.training.objectives import Objective
from tandem.zoo import weights_path
from tandem_jobs.train.token_data import open_source
from tandem_jobs.train.training_options import RESUME, TokenOptions
from tandem_jobs.train.training_run import train
from tandem_jobs.train.transformer_plan import FILE, Student, plan_transformer, steps_of
from tandem_workers.models.model_set import EMBEDDED, resolve

DEPTH, STEPS = 4, 5000
EXAMPLES = f"""examples: the embedded drafter and refiner; then one of 256 px for other classes, on from a published one
  tandem train var --tokens tokens/train --heldout tokens/heldout --balance 0.5 --out runs/drafter
  tandem train var --tokens tokens/train --heldout tokens/heldout --balance 0.5 --out runs/refiner \\
      --depth 2 --lr 2.5e-3 --steps 4000
  tandem train var --tokens s3://bucket/tokens --vqvae vae_ch160v4096z32 --init var_d16 --out s3://bucket/d16 \\
      --workers 8 --batch 1024 --micro-batch 64 --lr 4e-4 --epochs 40

{RESUME}  {FILE}   the average of the weights, which generate and serve load"""


class TrainVarSpec(TokenOptions):
    """Train a transformer on token maps. The defaults made the embedded drafter."""

    init: str | None = Field(
        None, description="weights to begin with, of any number of classes: a file, address or name; default: new ones"
    )
    depth: PositiveInt | None = Field(None, description=f"layers of a new one; width is 64 x depth; default: {DEPTH}")
    steps: PositiveInt | None = Field(None, description=f"optimiser steps; default: {STEPS}")
    epochs: float | None = Field(None, gt=0, description="passes over the tokens, instead of --steps")
    batch: PositiveInt = Field(32, description="pictures per step, over all workers")
    lr: float = Field(1.2e-3, gt=0, description="peak learning rate")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")

    @model_validator(mode="after")
    def check_one_of(self) -> TrainVarSpec:
        if self.steps and self.epochs:
            raise ValueError("expected --steps or --epochs, got both")
        if self.init == EMBEDDED:
            files = " or ".join(str(weights_path(role)) for role in ("drafter", "refiner"))
            raise ValueError(f"--init: expected one model, got 'embedded', which is a drafter and a refiner: {files}")
        if self.init and self.depth:
            raise ValueError("expected --init or --depth, got both: a file has its own depth")
        return self


def run(spec: TrainVarSpec) -> dict[str, Any]:
    """Train, and write OUT/var.safetensors. Returns the last scores."""
    source = open_source(spec)
    steps = steps_of(spec.epochs, source, spec.batch) if spec.epochs else spec.steps or STEPS
    init = resolve("refiner", spec.init, random_weights=False) if spec.init else None
    student = Student(
        partial(Objective, smoothing=spec.smoothing), steps, spec.batch, spec.lr, init, spec.depth or DEPTH
    )
    return train(spec, plan_transformer(spec, source, student, "train var"))
