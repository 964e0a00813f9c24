"""`tandem train classifier`: the small classifier of real pictures that measures generated ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt

from tandem.errors import InputError
from tandem.hashing import file_sha256
from tandem.metrics import share
from tandem.training.classifier import examine, load_classifier, save_classifier, train_classifier
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.progress import say
from tandem_jobs.train.splits import load_splits

EXAMPLES = """examples: the classifier of the embedded model
  tandem pictures --out pictures
  tandem train classifier --data pictures --out runs/classifier"""
FILE = "classifier.safetensors"


class TrainClassifierSpec(Spec):
    """Train a small classifier on real pictures. The defaults made the embedded one."""

    data: Path = Field(description="folder with train/<class>/<image> and heldout/<class>/<image>")
    out: Path = Field(description=f"folder for {FILE}")
    steps: PositiveInt = Field(1500, description="optimiser steps")
    batch: PositiveInt = Field(64, description="pictures per step")
    seed: int = Field(0, description="seed of weights, batches and augmentation")
    threads: PositiveInt = Field(2, description="CPU threads")


def run(spec: TrainClassifierSpec) -> dict[str, Any]:
    """Train, write OUT/classifier.safetensors, and print its hash and its accuracy on the held-out pictures."""
    torch.set_num_threads(spec.threads)
    train, heldout = load_splits(spec.data)
    if len(train.classes) < 2:
        raise InputError(f"expected pictures of two or more classes to tell apart, got {train.classes[0]!r} alone")
    say(f"training the classifier on {len(train)} real pictures, {spec.steps} steps")
    began = time.monotonic()
    model = train_classifier(train, spec.steps, spec.batch, spec.seed)
    spec.out.mkdir(parents=True, exist_ok=True)
    path = spec.out / FILE
    made = {"steps": spec.steps, "batch": spec.batch, "seed": spec.seed, "data_sha256": train.digest}
    save_classifier(path, model, {"classes": list(train.classes), "made": made})
    result: dict[str, Any] = {"file": str(path), "sha256": file_sha256(path)}
    result["seconds"] = round(time.monotonic() - began, 1)
    if len(heldout):
        result["heldout"] = vars(share(examine(load_classifier(path)[0], heldout.pixels)[0] == heldout.labels))
    say(f"wrote {path}")
    print(json.dumps(result))
    return result
