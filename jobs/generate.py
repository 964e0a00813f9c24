"""`tandem generate`: a labelled image dataset from a drafter and a refiner, on one machine or a cluster."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import sys
import time
from dataclasses import asdict, replace
from typing import Any

import tandem
from cluster.plan import Placement, place
from cluster.session import Session, open_session
from jobs.labels import LabelRows, choose_classes, read_label_file, rows_of_classes
from jobs.pipeline import Pipeline
from jobs.progress import RunProgress, busy_shares, overlap_s, print_summary, say
from jobs.spec import GenerateSpec
from tandem.config import SamplingConfig, VarConfig, to_dict
from tandem.images import Provenance
from workers.card import CardInfo, write_card
from workers.drafter import DecodeSettings
from workers.encoder import Encoder
from workers.formats import DatasetFormat
from workers.manifest import Manifest, open_job
from workers.models import ModelSet, resolve_models
from workers.records import Span
from workers.shards import ShardPlan
from workers.store import open_store

EXAMPLES = """examples:
  tandem generate --classes all --per-class 20 --out out
  tandem generate --classes face,heart,flag --images 90 --out out --format parquet --codec webp
  tandem generate --labels rows.csv --out out --placement split --drafters 2 --refiners 1
  tandem generate --spec job.yaml --seed 7 --out out7
  tandem generate --drafter var_d30.pth --refiner var_d16.pth --vqvae vae_ch160v4096z32.pth \\
      --draft-steps 8 --classes 0-999 --per-class 50 --batch 64 --out imagenet

The same command again goes on where it stopped. Only other replicas and placements are the same job;
anything that changes a byte is another one and is refused in the same place."""
MAX_SHARD_BATCHES = 32
SHARDS_AIMED_AT = 32


def run(spec: GenerateSpec) -> dict[str, Any]:
    """Check everything, make what is missing, and return the summary."""
    models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights)
    draft_steps, sampling = decoding_choices(spec, models)
    rows = read_rows(spec, models.class_names)
    store = open_store(spec.out)
    plan = ShardPlan(len(rows), spec.shard_size or choose_shard_size(len(rows), spec.batch))
    fmt = DatasetFormat(spec.format, spec.codec, models.class_names, spec.seed, draft_steps)
    if rows.extra is not None:
        fmt.check_extra(rows.extra.schema)
    provenance = Provenance(
        software(), models.drafter.sha256, models.refiner.sha256, models.vqvae.sha256, spec.seed, draft_steps
    )
    encoder = Encoder(spec.codec, spec.quality, provenance, models.class_names)
    min_cpus = 4 + (spec.drafters or 1) + (spec.refiners or 1)
    with open_session(spec.address, spec.logical_gpus, min_cpus) as session:
        placement = place(spec.placement, spec.drafters, spec.refiners, session.num_gpus, session.simulated)
        dtype = choose_dtype(spec, session, placement)
        settings = DecodeSettings(spec.seed, draft_steps, sampling, spec.batch, dtype, spec.threads)
        identity = job_identity(spec, models, settings, rows, plan)
        job = open_job(store, identity, {"command": command_line(), **versions()}, spec.overwrite)
        todo = [shard for shard in range(plan.num_shards) if shard not in job.committed]
        announce(session, placement, models, settings, plan, len(rows), len(job.committed), spec.out)
        pipeline = Pipeline(rows, plan, models, settings, placement, encoder, fmt, store, spec.keep_tokens)
        summary = make_shards(pipeline, todo, len(rows))
    write_card(store, plan.num_shards, card_info(spec, models, settings, fmt))
    Manifest(store).finish(plan.num_shards)
    summary |= {
        "out": store.uri,
        "total_images": len(rows),
        "resumed_shards": len(job.committed),
        "placement": placement.mode,
        "simulated_gpus": session.simulated and placement.mode != "cpu",
    }
    print_summary(summary)
    say(f"dataset, card and contact sheet: {store.uri}")
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


def read_rows(spec: GenerateSpec, class_names: tuple[str, ...]) -> LabelRows:
    if spec.labels is not None:
        return read_label_file(spec.labels, class_names)
    assert spec.classes is not None  # the spec has checked it
    return rows_of_classes(choose_classes(spec.classes, class_names), spec.per_class, spec.images)


def decoding_choices(spec: GenerateSpec, models: ModelSet) -> tuple[int, SamplingConfig]:
    """N and sampling: what was asked for, else the model's own, else the published settings."""
    pyramid = models.drafter_config.pyramid
    draft_steps = pyramid.default_draft_steps if spec.draft_steps is None else spec.draft_steps
    given = {
        name: value for name in ("cfg", "top_k", "top_p", "temperatures") if (value := getattr(spec, name)) is not None
    }
    return pyramid.check_draft_steps(draft_steps), replace(models.sampling, **given)


def choose_dtype(spec: GenerateSpec, session: Session, placement: Placement) -> str:
    if spec.dtype != "auto":
        return spec.dtype
    return "float32" if placement.mode == "cpu" or session.simulated else "bfloat16"


def choose_shard_size(num_images: int, batch: int) -> int:
    """Whole batches: some 32 shards for a small job, 32 batches a shard for a large one. Depends on the job alone."""
    return batch * min(MAX_SHARD_BATCHES, max(1, num_images // (batch * SHARDS_AIMED_AT)))


def job_identity(
    spec: GenerateSpec, models: ModelSet, settings: DecodeSettings, rows: LabelRows, plan: ShardPlan
) -> dict[str, Any]:
    """Whatever changes bytes. Replicas, placement and address are not here: they may change on resume."""
    decoding = asdict(settings)
    decoding["sampling"] = to_dict(settings.sampling)
    return {
        "weights_sha256": models.hashes,
        "decoding": decoding,
        "rows": len(rows),
        "rows_sha256": rows.digest,
        "shard_size": plan.shard_size,
        "format": spec.format,
        "codec": spec.codec,
        "quality": spec.quality if spec.codec != "png" else None,
        "keep_tokens": spec.keep_tokens,
    }


def announce(
    session: Session,
    placement: Placement,
    models: ModelSet,
    settings: DecodeSettings,
    plan: ShardPlan,
    num_images: int,
    num_committed: int,
    out: str,
) -> None:
    """What is about to happen, in a few lines."""
    say(session.describe())
    say(placement.describe())
    for ref, config in ((models.drafter, models.drafter_config), (models.refiner, models.refiner_config)):
        say(f"{ref.role}: {model_line(config)} ({ref.source}, sha256 {ref.sha256[:12]})")
    scales = models.drafter_config.pyramid.num_scales
    say(
        f"N = {settings.draft_steps} of {scales} scales, {settings.dtype}, batches of {settings.batch}, "
        f"seed {settings.seed}"
    )
    done = f", {num_committed} of them done before" if num_committed else ""
    say(f"{num_images} images in {plan.num_shards} shards{done} -> {out}")


def model_line(config: VarConfig) -> str:
    return f"VAR of depth {config.depth}, {config.num_parameters / 1e6:.1f} M parameters"


def card_info(spec: GenerateSpec, models: ModelSet, settings: DecodeSettings, fmt: DatasetFormat) -> CardInfo:
    refs = (models.drafter, models.refiner, models.vqvae)
    return CardInfo(
        fmt=fmt,
        image_size=models.image_size,
        models={ref.role: (ref.source, ref.sha256) for ref in refs},
        sampling=to_dict(settings.sampling) | {"batch": settings.batch, "dtype": settings.dtype},
        command=command_line(),
        software=software(),
        tokens=spec.keep_tokens,
    )


def software() -> str:
    """Name and version, as written into every image."""
    return f"tandem {tandem.__version__}"


def versions() -> dict[str, str]:
    names = ("torch", "ray", "numpy", "pillow", "pyarrow")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"software": software(), "python": platform.python_version(), **found}


def command_line() -> str:
    return shlex.join(["tandem", *sys.argv[1:]])


if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["generate", *sys.argv[1:]]))
