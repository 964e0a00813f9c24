"""A training as a command runs it: the place, the cluster, progress, sheets of images, and the weights at the end."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray.train import UserCallback
from torch import Tensor

from tandem.checkpoints.fine_tuning import RECIPE
from tandem.checkpoints.weights import save_checkpoint
from tandem.config import VarConfig, VqvaeConfig, to_dict
from tandem.errors import PlacementError
from tandem.hashing import file_sha256
from tandem.training.parallel import Sharding
from tandem.training.task import Task
from tandem.training.train_costs import TrainingStep
from tandem.var import Var
from tandem.vqvae import Vqvae
from tandem_cluster.devices import memory_of_cluster
from tandem_cluster.session import Session, about_to_open, open_session
from tandem_jobs.run.progress import say
from tandem_jobs.run.shard_range import command_line
from tandem_jobs.run.versions import versions
from tandem_jobs.train.live_line import LiveLine
from tandem_jobs.train.micro_batch import choose_micro_batch
from tandem_jobs.train.training_options import TrainingOptions
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store
from tandem_workers.training.callbacks import TensorBoardCallback, WandbCallback
from tandem_workers.training.checkpoint_files import read_average
from tandem_workers.training.run import TrainingOutcome, Watching, WorkerGroup, finished, run_training
from tandem_workers.training.run_record import claim_run
from tandem_workers.training.sample_sheets import Sampler, SampleSheets

MOST_THREADS = 8  # of a worker, by default


@dataclass(frozen=True)
class Training:
    """What workers get: the recipe and its data; and what draws images of the average, if it makes any by itself."""

    task: Task
    data: Any
    sampler: Sampler | None = None


@dataclass(frozen=True)
class Plan:
    """What is trained, ready to start.

    Attributes:
        steps, batch, peak_lr: of the run.
        config: of the model.
        recipe: all else that changes weights beside the settings of the loop, as JSON values.
        make: reads data and weights; called in a session of Ray, where there is something left to train, with whether
            products are in bfloat16.
        load: makes the model of its config and averaged weights.
        file: name of the exported weights.
        header: of the exported file beside the recipe, such as class names and what it was fine-tuned for.
        counted: a step of it, whose bytes decide the micro-batch; None: a micro-batch has all rows of a worker.
    """

    steps: int
    batch: int
    peak_lr: float
    config: VarConfig | VqvaeConfig
    recipe: Mapping[str, Any]
    make: Callable[[bool], Training]
    load: Callable[[Any, dict[str, Tensor]], Var | Vqvae]
    file: str
    header: Mapping[str, Any]
    sharding: Sharding = "ddp"
    counted: TrainingStep | None = None


def train(spec: TrainingOptions, plan: Plan) -> dict[str, Any]:
    """Train to the end, export, and print a JSON line. A run that is finished is exported alone."""
    store = open_store(spec.out)
    store.check()
    claim_run(store, identity_of(spec, plan), {"command": command_line(), "versions": versions()})
    outcome = finished(store, plan.steps) or run(spec, plan, store)
    sha256 = export(plan, spec.seed, store)
    path = f"{store.uri}/{plan.file}"
    say(f"wrote {path}")
    result = {"file": path, "sha256": sha256, "steps": outcome.step, "seconds": round(outcome.seconds, 1)}
    result |= outcome.evaluation
    print(json.dumps(result), flush=True)
    return result


def identity_of(spec: TrainingOptions, plan: Plan) -> dict[str, Any]:
    """Everything that changes weights. `--dtype auto` stays auto: a run may go on where there are no GPUs."""
    settings = spec.settings(plan.steps, plan.batch, plan.peak_lr, plan.sharding, on_gpus=False).identity()
    return {"model": to_dict(plan.config), **plan.recipe, **settings, "dtype": spec.dtype}


def run(spec: TrainingOptions, plan: Plan, store: Store) -> TrainingOutcome:
    """Train on Ray, with progress on stderr."""
    callbacks = make_callbacks(spec, store)
    say(about_to_open(spec.address))
    with open_session(spec.address, 0, 1) as session:
        group = choose_group(spec, session)
        say(f"{session.describe()}; training by {describe(group)} -> {store.uri}")
        settings = spec.settings(plan.steps, plan.batch, plan.peak_lr, plan.sharding, group.cuda)
        if settings.micro_batch is None and plan.counted is not None:
            step = replace(plan.counted, mixed=settings.dtype == "bfloat16", gpus=group.num)
            rows = choose_micro_batch(step, plan.batch, group, memory_of_cluster(spec.address))
            settings = replace(settings, micro_batch=rows)
        made = plan.make(settings.dtype == "bfloat16")
        sampler = made.sampler if spec.samples_every else None
        line = LiveLine(plan.steps, plan.batch)
        with SampleSheets(store, sampler, spec.samples_every, line.say) as sheets, closing(line):

            def on_record(record: dict[str, float]) -> None:
                line.record(record)
                sheets.note(int(record["step"]))

            watching = Watching(on_record, line.say, callbacks)
            return run_training(made.task, settings, store, group, watching, made.data, spec.keep)


def make_callbacks(spec: TrainingOptions, store: Store) -> list[UserCallback]:
    """What else gets the records. InputError for a package that is not installed."""
    callbacks: list[UserCallback] = []
    if spec.tensorboard:
        callbacks.append(TensorBoardCallback(os.path.abspath(spec.tensorboard)))
    if spec.wandb:
        callbacks.append(WandbCallback(spec.wandb, store.uri.rstrip("/").rpartition("/")[2]))
    return callbacks


def choose_group(spec: TrainingOptions, session: Session) -> WorkerGroup:
    """Workers and their resources. PlacementError where GPUs are asked for and there are none."""
    has_gpus = session.num_gpus > 0 and not session.simulated
    if spec.device == "gpu" and not has_gpus:
        raise PlacementError("--device: expected a cluster with GPUs, this one has none")
    on_gpus = has_gpus and spec.device != "cpu"
    cpus = max(1, int(session.num_cpus))
    threads = spec.threads or max(1, min(MOST_THREADS, cpus // spec.workers))
    return WorkerGroup(spec.workers, threads, float(on_gpus), on_gpus, spec.worker_timeout)


def describe(group: WorkerGroup) -> str:
    count = f"{group.num} worker{'s' * (group.num > 1)}"
    return f"{count} on a GPU each" if group.cuda else f"{count} of {group.cpus} CPU thread{'s' * (group.cpus > 1)}"


def export(plan: Plan, seed: int, store: Store) -> str:
    """Write the averaged weights as safetensors, float16, unless they are there; returns the file's sha256."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / plan.file
        if store.exists(plan.file):
            path.write_bytes(store.read(plan.file))
            return file_sha256(path)
        _, average = read_average(store)
        length = {"steps": plan.steps, "batch": plan.batch, "peak_lr": plan.peak_lr, "seed": seed}
        header = {**plan.header, RECIPE: {**plan.recipe, **length}}
        save_checkpoint(path, plan.load(plan.config, average), header, torch.float16)
        return store.put_once(plan.file, path.read_bytes()).sha256
