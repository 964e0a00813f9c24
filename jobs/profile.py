"""`tandem profile`: seconds per batch of every stage on the hardware at hand, for the planner."""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from rich.console import Console
from rich.table import Table

from cluster.profile import Profile, StageName, StageTime, write_profile
from jobs.options import MeasuredOptions
from jobs.progress import say
from jobs.settings import choose_dtype
from tandem.assembly import Preparation
from tandem.collaborative import decode, draft, refine
from tandem.images import Codec, Provenance, encode_image
from tandem.sampling import uniforms
from workers.models import DTYPES, ModelSet, load_tokenizer, load_transformer, pick_device, resolve_models
from workers.refiner import to_uint8
from workers.store import open_store

EXAMPLES = """examples:
  tandem profile --out cpu.json
  tandem profile --out l20.json --drafter var_d30.pth --refiner var_d16.pth --vqvae vae_ch160v4096z32.pth \\
      --batches 32,64 --draft-steps 6,7,8,9
  tandem profile --out d30.json --drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights

Run it once on each kind of machine, then: tandem plan --profile ... --gpus ..."""


class ProfileSpec(MeasuredOptions):
    """Measure seconds per batch of draft, refine, decode, encode and store, and load times, into a JSON file."""

    out: Path = Field(description="the profile")
    kind: str | None = Field(None, description="name of this kind of device for --gpus; default: the device's own name")
    draft_steps: tuple[PositiveInt, ...] | None = Field(None, description="values of N; default: all")
    batches: tuple[PositiveInt, ...] = Field((32,), description="batch sizes")
    repeats: PositiveInt = Field(3, description="timed runs of each stage after one that is not; the median counts")
    threads: PositiveInt = Field(1, description="CPU threads of a replica")
    codec: Codec = Field("png", description="image files")
    quality: int = Field(92, ge=1, le=100, description="of jpeg and webp")
    seed: NonNegativeInt = Field(0, description="of the images made meanwhile")


@dataclass
class Timer:
    """Times stages on one device and keeps what it found."""

    device: torch.device
    repeats: int
    times: list[StageTime] = field(default_factory=list)

    def measure(self, stage: StageName, draft_steps: int | None, batch: int, work: Callable[[], Any]) -> Any:
        """Run the work once to warm up and then `repeats` times; returns what it returned last."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = []
        for _ in range(self.repeats + 1):
            began = time.perf_counter()
            result = work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        median = statistics.median(seconds[1:])
        found = StageTime(stage=stage, draft_steps=draft_steps, batch=batch, seconds=median, memory_bytes=peak)
        self.times.append(found)
        say(f"{stage:<7}{f'N = {draft_steps}' if draft_steps else '':<8}batch {batch:<5}{median:.4f} s")
        return result


def run(spec: ProfileSpec) -> Profile:
    """Measure and write the profile; a table on stderr, the profile as one JSON line on stdout."""
    torch.set_num_threads(spec.threads)
    device = pick_device()
    dtype_name = choose_dtype(spec.dtype, device.type == "cuda")
    models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights)
    pyramid = models.drafter_config.pyramid
    steps = [pyramid.check_draft_steps(n) for n in spec.draft_steps or range(1, pyramid.num_scales)]
    how = Preparation.of(spec)
    loaded, load_s = load_all(models, DTYPES[dtype_name], device, how)
    timer = Timer(device, spec.repeats)
    for batch in spec.batches:
        profile_batch(timer, loaded, models, spec, batch, steps)
    profile = Profile(
        name=spec.out.stem,
        kind=spec.kind or device_kind(device),
        num_scales=pyramid.num_scales,
        models={ref.role: ref.source for ref in models.refs},
        dtype=dtype_name,
        threads=spec.threads,
        source=", ".join([f"measured by tandem profile, median of {spec.repeats}", *how.names]),
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        load_s=load_s,
        stages=tuple(timer.times),
    )
    write_profile(profile, spec.out)
    print_profile(profile)
    print(json.dumps(profile.model_dump(mode="json", exclude_none=True)), flush=True)
    return profile


@dataclass(frozen=True)
class Loaded:
    """The three models on the device."""

    drafter: Any
    refiner: Any
    vqvae: Any


def load_all(
    models: ModelSet, dtype: torch.dtype, device: torch.device, how: Preparation
) -> tuple[Loaded, dict[str, float]]:
    """The models, and the seconds that each took to load."""
    patch_nums = models.drafter_config.patch_nums
    loaders: dict[str, Callable[[], Any]] = {
        "drafter": lambda: load_transformer(models.drafter, dtype, device, how),
        "refiner": lambda: load_transformer(models.ref("refiner"), dtype, device, how),
        "vqvae": lambda: load_tokenizer(models.vqvae, patch_nums, dtype, device),
    }
    found, seconds = {}, {}
    for role, load in loaders.items():
        began = time.perf_counter()
        found[role] = load()
        seconds[role] = max(1e-6, time.perf_counter() - began)
    return Loaded(**found), seconds


def profile_batch(
    timer: Timer, loaded: Loaded, models: ModelSet, spec: ProfileSpec, batch: int, steps: list[int]
) -> None:
    """All stages at one batch size. The images of the last N go through encode and store."""
    quantizer, sampling = loaded.vqvae.quantize, models.sampling
    labels = torch.arange(batch, device=timer.device) % models.drafter_config.num_classes
    noise = uniforms(spec.seed, np.arange(batch), models.drafter_config.pyramid.num_tokens).to(timer.device)
    ids = None
    for n in steps:
        drafting = partial(draft, loaded.drafter, quantizer, labels, noise, n, sampling)
        prefix = timer.measure("draft", n, batch, drafting)
        refining = partial(refine, loaded.refiner, quantizer, labels, noise, prefix, sampling)
        ids = timer.measure("refine", n, batch, refining)
    assert ids is not None  # there is at least one N
    pixels = timer.measure("decode", None, batch, lambda: to_uint8(decode(loaded.vqvae, ids)))
    cpu = replace(timer, device=torch.device("cpu"))
    drafter, refiner, vqvae = (models.hashes[role] for role in ("drafter", "refiner", "vqvae"))
    provenance = Provenance("tandem profile", drafter, refiner, vqvae, spec.seed, steps[-1])
    images = cpu.measure(
        "encode",
        None,
        batch,
        lambda: [
            encode_image(image, spec.codec, spec.quality, provenance.for_image(i, 0, "class"))
            for i, image in enumerate(pixels)
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        data, place = b"".join(images), open_store(folder)
        names = iter(range(1_000_000))
        cpu.measure("store", None, batch, lambda: place.put_once(f"shards/{next(names):05d}.tar", data))


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
    say("load: " + ", ".join(f"{role} {seconds:.2f} s" for role, seconds in profile.load_s.items()))


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv[1:1] = ["profile"]
    sys.exit(main())
