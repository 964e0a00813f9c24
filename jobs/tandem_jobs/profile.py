"""`tandem profile`: seconds per batch of every stage on the hardware at hand, for the planner."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.table import Table

from tandem.assembly import Preparation
from tandem.config import SamplingConfig
from tandem.counting.batch_fit import device_bytes
from tandem.counting.costs import Bytes
from tandem.errors import InputError
from tandem.images import LOSSY, Codec
from tandem_cluster.profile_file import Profile, RoleName, StageName, StageTime, write_profile
from tandem_jobs.options.options import GuidanceOptions, MeasuredOptions
from tandem_jobs.run.batch_size import DRAFTERS, GPU_SHARE, REFINERS, SPLIT, Workload, all_stages
from tandem_jobs.run.decode_choices import (
    choose_draft_steps,
    choose_dtype,
    choose_preparation,
    choose_sampling,
    warn_if_unsuited,
)
from tandem_jobs.run.progress import say
from tandem_jobs.stage_times import Measuring, Timer
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import ModelSet, pick_device, resolve_models

EXAMPLES = """examples:
  tandem profile --out cpu.json
  tandem profile --out l20.json --drafter var_d30.pth --refiner var_d16.pth --vqvae vae_ch160v4096z32.pth \\
      --batches 32,64 --draft-steps 6,7,8,9
  tandem profile --out d30.json --drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights
  tandem profile --out small.json --roles refine

Roles are measured one after the other, so a GPU needs memory for the models of one role at a time. A role that does not
fit, by counted bytes or when tried, is recorded with the reason, and the planner does not place it on such GPUs.

Run it once on each kind of machine, then: tandem plan --profile ... --gpus ..."""


class ProfileSpec(MeasuredOptions, GuidanceOptions):
    """Measure seconds per batch of draft, refine, decode, encode and store, and load times; write a JSON file."""

    out: Path = Field(description="file to write")
    kind: str | None = Field(None, description="name of this kind of device in --gpus; default: the device's own name")
    draft_steps: tuple[PositiveInt, ...] | None = Field(None, description="values of N; default: all")
    batches: tuple[PositiveInt, ...] = Field((32,), description="batch sizes")
    repeats: PositiveInt = Field(3, description="timed runs of each stage after a warm-up; the median counts")
    roles: tuple[RoleName, ...] = Field(
        ("draft", "refine"),
        description="roles to measure: draft, refine (with VQVAE decode); others count as impossible",
    )
    device_memory_gb: PositiveFloat | None = Field(
        None, description="gigabytes that a replica may use; default: 0.9 of a GPU, no limit on CPUs"
    )
    threads: PositiveInt = Field(1, description="CPU threads of a replica")
    codec: Codec = Field("png", description="format of the image files")
    quality: int = Field(92, ge=1, le=100, description=f"quality of {LOSSY}")
    seed: NonNegativeInt = Field(0, description="seed of the images")


def run(spec: ProfileSpec) -> Profile:
    """Measure and write the profile; a table on stderr, the profile as one JSON line on stdout.

    Raises InputError if the device can take no role.
    """
    if not spec.out.parent.is_dir() or spec.out.is_dir():  # before minutes of measuring
        raise InputError(f"--out: expected a file in an existing folder, got {spec.out}")
    torch.set_num_threads(spec.threads)
    device = pick_device()
    dtype = choose_dtype(spec.dtype, device.type == "cuda")
    models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights)
    pyramid = models.drafter_config.pyramid
    sampling = choose_sampling(spec, models.sampling, pyramid)
    warn_if_unsuited(models, (), [sampling])
    steps = sorted({choose_draft_steps(n, models) for n in spec.draft_steps or range(1, pyramid.num_scales)})
    preparation = choose_preparation(spec, device.type == "cuda", dtype)
    settings = DecodeSettings(spec.seed, steps[-1], sampling, spec.batches[0], dtype, spec.threads, preparation)
    settings = replace(settings, on_gpu=device.type == "cuda")
    timer = Timer(device, spec.repeats)
    budget = budget_of(spec, device)
    counted = count_bytes(spec, models, sampling, steps, device) if budget else {}
    measure_all(spec, Measuring(models, settings, steps), timer, fitting_batches(spec, timer, counted, budget))
    if not any(t.stage in ("draft", "refine") for t in timer.times):
        reasons = "; ".join(dict.fromkeys(c.reason for c in timer.cannot))
        raise InputError(f"expected a device that can draft or refine, got one that can do neither: {reasons}")
    names = preparation.names
    profile = Profile(
        name=spec.out.stem,
        kind=spec.kind or device_kind(device),
        num_scales=pyramid.num_scales,
        models={ref.role: ref.source for ref in models.refs},
        dtype=dtype,
        threads=spec.threads,
        source=f"measured by tandem profile, median of {spec.repeats}, {', '.join([sampling.guidance, *names])}",
        memory_bytes=budget,
        load_s=timer.load_s,
        stages=tuple(with_counted(timer, counted)),
        cannot=tuple(timer.cannot),
        weights_bytes={stage: part.weights for (stage, _), part in counted.items()},
    )
    write_profile(profile, spec.out)
    print_profile(profile)
    print(json.dumps(profile.model_dump(mode="json", exclude_none=True)), flush=True)
    return profile


Counted = dict[tuple[StageName, int], Bytes]  # by stage and batch


def budget_of(spec: ProfileSpec, device: torch.device) -> int | None:
    """Bytes that a replica may use; None if not known."""
    if spec.device_memory_gb is not None:
        return int(spec.device_memory_gb * 1e9)
    return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def count_bytes(
    spec: ProfileSpec, models: ModelSet, sampling: SamplingConfig, steps: Sequence[int], device: torch.device
) -> Counted:
    """Bytes of each stage at each batch, with the N of `steps` that takes the most: of a drafter the largest, of a
    refiner a small one."""
    workload = Workload(models, SPLIT, steps[-1], sampling, replicas=1, row_draft_steps=tuple(steps))
    stages = all_stages(spec, workload, device.type == "cuda")
    names: tuple[StageName, ...] = (*DRAFTERS, *REFINERS)
    return {(name, batch): stages[name](batch) for name in names for batch in spec.batches}


def fitting_batches(spec: ProfileSpec, timer: Timer, counted: Counted, budget: int | None) -> dict[RoleName, list[int]]:
    """Batch sizes to measure for each role; those that do not fit by counted bytes are recorded with the reason."""
    found: dict[RoleName, list[int]] = {}
    stages: dict[RoleName, tuple[StageName, ...]] = {"draft": DRAFTERS, "refine": REFINERS}
    for role, names in stages.items():
        found[role] = []
        if role not in spec.roles:
            timer.give_up(role, None, "left out by --roles")
            continue
        for batch in spec.batches:
            need = role_bytes([counted[name, batch] for name in names], spec, timer) if budget else 0
            if budget and need > budget:
                timer.give_up(
                    role, batch, f"needs {need / 1e9:.2f} GB by counted bytes, there are {budget / 1e9:.2f} GB"
                )
            else:
                found[role].append(batch)
    return found


def role_bytes(parts: list[Bytes], spec: ProfileSpec, timer: Timer) -> int:
    """Bytes of stages that share the device."""
    stages = [lambda batch, part=part: part for part in parts]
    on_gpu = timer.device.type == "cuda"
    return device_bytes(stages, 0, not on_gpu, Preparation.of(spec, on_gpu).cuda_graphs)


def measure_all(spec: ProfileSpec, measuring: Measuring, timer: Timer, batches: dict[RoleName, list[int]]) -> None:
    """Measure all stages of the roles that may fit; encode and store get the images of the last N."""
    prefixes = measuring.draft(timer, batches["draft"]) if batches["draft"] else {}
    pixels = measuring.refine(timer, batches["refine"], prefixes) if batches["refine"] else {}
    for batch, images in pixels.items():
        measuring.store(timer, images, spec.codec, spec.quality, (measuring.steps[-1], batch) in prefixes)


def with_counted(timer: Timer, counted: Counted) -> list[StageTime]:
    """Stage times, with counted bytes (all weights of the role included) where memory was not measured."""
    found = []
    for t in timer.times:
        role = DRAFTERS if t.stage in DRAFTERS else REFINERS if t.stage in REFINERS else ()
        if t.memory_bytes is None and counted and role:
            others = sum(counted[name, t.batch].weights for name in role if name != t.stage)
            t = t.model_copy(update={"memory_bytes": counted[t.stage, t.batch].total + others})
        found.append(t)
    return found


def device_kind(device: torch.device) -> str:
    """A short name of the device, that of Ray's accelerator types: 'NVIDIA H100 80GB HBM3' -> 'h100'."""
    if device.type != "cuda":
        return "cpu"
    name = torch.cuda.get_device_name(device)
    match = re.match(r"\w+\s+([A-Z0-9]+)", name)  # Ray's own rule, in its accelerator manager for NVIDIA
    return (match[1] if match else name).lower()


def print_profile(profile: Profile) -> None:
    table = Table("stage", "N", "batch", "s/batch", "images/s", "GB", title=f"{profile.name}: {profile.kind}")
    for t in profile.stages:
        memory = f"{t.memory_bytes / 1e9:.2f}" if t.memory_bytes else ""
        rate = f"{t.batch / t.seconds:.1f}" if t.seconds else ""
        table.add_row(t.stage, str(t.draft_steps or ""), str(t.batch), f"{t.seconds:.4f}", rate, memory)
    Console(stderr=True).print(table)
    for lack in profile.cannot:
        say(f"cannot {lack.role}{f' at batch {lack.batch}' if lack.batch else ''}: {lack.reason}")
    say("load: " + ", ".join(f"{role} {seconds:.2f} s" for role, seconds in profile.load_s.items()))
