"""What all jobs that make shards have in common: choices, resume, progress and the closing summary."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import tandem
from cluster.plan import Placement
from cluster.session import Session, open_session
from jobs.labels import LabelRows, choose_classes, read_label_file, rows_of_classes
from jobs.options import DecodingOptions, PlaceOptions, RowOptions
from jobs.pipeline import Pipeline
from jobs.progress import RunProgress, busy_shares, overlap_s, print_summary, say
from tandem.config import Pyramid, SamplingConfig, VarConfig, to_dict
from workers.drafter import DecodeSettings
from workers.manifest import open_job
from workers.models import ModelSet
from workers.records import Span
from workers.shards import ShardPlan
from workers.store import Store

MAX_SHARD_BATCHES = 32
SHARDS_AIMED_AT = 32


@dataclass(frozen=True)
class Work:
    """A job that is ready to run: what makes it the same job, its pipeline, and what to say of it."""

    identity: dict[str, Any]
    pipeline: Pipeline
    placement: Placement
    lines: list[str]
    info: dict[str, Any]  # what else job.json keeps


def run_shards(
    options: PlaceOptions, store: Store, plan: ShardPlan, min_cpus: int, prepare: Callable[[Session], Work]
) -> dict[str, Any]:
    """Take the place, make the shards that are missing, and return the summary. The dataset is not finished yet."""
    with open_session(options.address, options.logical_gpus, min_cpus) as session:
        work = prepare(session)
        info = {"command": command_line(), **versions(), **work.info}
        job = open_job(store, work.identity, info, options.overwrite)
        todo = [shard for shard in range(plan.num_shards) if shard not in job.committed]
        for line in (session.describe(), work.placement.describe(), *work.lines):
            say(line)
        done = f", {len(job.committed)} of them done before" if job.committed else ""
        say(f"{plan.num_rows} images in {plan.num_shards} shards{done} -> {store.uri}")
        summary = make_shards(work.pipeline, todo, plan.num_rows)
    return summary | {
        "out": store.uri,
        "total_images": plan.num_rows,
        "resumed_shards": len(job.committed),
        "placement": work.placement.mode,
        "simulated_gpus": session.simulated and work.placement.mode != "cpu",
    }


def close(summary: dict[str, Any], what: str) -> dict[str, Any]:
    """The closing table on stderr, and one JSON line on stdout."""
    print_summary(summary)
    say(f"{what}: {summary['out']}")
    print(json.dumps(summary), flush=True)
    return summary


def make_shards(pipeline: Pipeline, todo: list[int], total: int) -> dict[str, Any]:
    """Run the pipeline over the shards that are left, with progress."""
    began = time.monotonic()
    spans: list[Span] = []
    todo_rows = sum(len(pipeline.plan.indices(shard)) for shard in todo)
    with RunProgress(total, done=total - todo_rows) as progress:
        for stored in pipeline.run(todo) if todo else ():
            spans += stored.spans
            progress.add(stored.num_rows)
    seconds = time.monotonic() - began
    drafts = [s for s in spans if s.stage == "draft"]
    refines = [s for s in spans if s.stage == "refine"]
    return {
        "images": todo_rows,
        "seconds": round(seconds, 3),
        "images_per_s": round(todo_rows / seconds, 3) if todo else 0.0,
        "stages": busy_shares(spans),
        "draft_refine_overlap_s": round(overlap_s(drafts, refines), 3),
    }


def read_rows(options: RowOptions, class_names: tuple[str, ...]) -> LabelRows:
    if options.labels is not None:
        return read_label_file(options.labels, class_names)
    assert options.classes is not None  # the options have checked it
    return rows_of_classes(choose_classes(options.classes, class_names), options.per_class, options.images)


def plan_shards(options: RowOptions, num_rows: int, batch: int) -> ShardPlan:
    """Whole batches: some 32 shards for a small job, 32 batches a shard for a large one. Depends on the job alone."""
    batches = min(MAX_SHARD_BATCHES, max(1, num_rows // (batch * SHARDS_AIMED_AT)))
    return ShardPlan(num_rows, options.shard_size or batch * batches)


def choose_draft_steps(asked: int | None, pyramid: Pyramid) -> int:
    return pyramid.check_draft_steps(pyramid.default_draft_steps if asked is None else asked)


def choose_sampling(options: DecodingOptions, own: SamplingConfig) -> SamplingConfig:
    """What was asked for, else the model's own."""
    names = ("cfg", "top_k", "top_p", "temperatures")
    return replace(own, **{name: value for name in names if (value := getattr(options, name)) is not None})


def choose_settings(
    options: DecodingOptions, seed: int, draft_steps: int, sampling: SamplingConfig, on_real_gpus: bool
) -> DecodeSettings:
    dtype: str = options.dtype
    if dtype == "auto":
        dtype = "bfloat16" if on_real_gpus else "float32"
    return DecodeSettings(seed, draft_steps, sampling, options.batch, dtype, options.threads)


def decoding_identity(settings: DecodeSettings) -> dict[str, Any]:
    return asdict(settings) | {"sampling": to_dict(settings.sampling)}


def describe_models(models: ModelSet, settings: DecodeSettings, configs: Sequence[VarConfig | None]) -> list[str]:
    """What is about to decode, in a few lines."""
    transformers = (models.drafter, models.refiner)
    lines = [
        f"{ref.role}: VAR of depth {config.depth}, {config.num_parameters / 1e6:.1f} M parameters "
        f"({ref.source}, sha256 {ref.sha256[:12]})"
        for ref, config in zip(transformers, configs, strict=True)
        if ref and config
    ]
    scales = models.drafter_config.pyramid.num_scales
    decoding = f"{settings.dtype}, batches of {settings.batch}, seed {settings.seed}"
    return [*lines, f"N = {settings.draft_steps} of {scales} scales, {decoding}"]


def software() -> str:
    """Name and version, as written into every image."""
    return f"tandem {tandem.__version__}"


def versions() -> dict[str, str]:
    names = ("torch", "ray", "numpy", "pillow", "pyarrow")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"software": software(), "python": platform.python_version(), **found}


def command_line() -> str:
    return shlex.join(["tandem", *sys.argv[1:]])
