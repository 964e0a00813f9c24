"""`tandem generate`: a labelled image dataset from a drafter and a refiner, on one machine or a cluster."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import ray
from pydantic import Field, PositiveInt

from cluster.plan import PlacementMode, place
from cluster.session import Session
from jobs.flow import wanted_object_store
from jobs.images import ImageJobOptions, image_identity, open_images
from jobs.options import RowOptions
from jobs.pipeline import Pipeline, ReadLabels, generate_pools
from jobs.running import (
    Job,
    Work,
    choose_draft_steps,
    choose_sampling,
    choose_settings,
    close,
    decoding_identity,
    describe_models,
    plan_shards,
    read_rows,
)
from workers.drafter import DecodeSettings
from workers.models import resolve_models

EXAMPLES = """examples:
  tandem generate --classes all --per-class 20 --out out
  tandem generate --classes face,heart,flag --images 90 --out out --format parquet --codec webp
  tandem generate --labels rows.csv --out out --placement split --drafters 2 --refiners 1
  tandem generate --spec job.yaml --seed 7 --out out7
  tandem generate --drafter var_d30.pth --refiner var_d16.pth --vqvae vae_ch160v4096z32.pth \\
      --draft-steps 8 --classes 0-999 --per-class 50 --batch 64 --out s3://bucket/imagenet

The same command again goes on where it stopped. Only other replicas and placements are the same job;
anything that changes a byte is another one and is refused in the same place."""


class GenerateSpec(ImageJobOptions, RowOptions):
    """Synthesise a labelled image dataset: drafters make the coarse token maps, refiners the fine ones."""

    drafter: str = Field("embedded", description="'embedded', a file, an s3:// address, or a preset (d16 to d36)")
    refiner: str = Field("embedded", description="like --drafter; the smaller model")
    placement: PlacementMode = Field(
        "auto",
        description="split: drafters and refiners on disjoint GPUs; colocated: both on each GPU; cpu; "
        "auto says what it chose and why",
    )
    drafters: PositiveInt | None = Field(None, description="drafter replicas")
    refiners: PositiveInt | None = Field(None, description="refiner replicas")


def run(spec: GenerateSpec) -> dict[str, Any]:
    """Check everything, make what is missing, and return the summary."""
    models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights)
    draft_steps = choose_draft_steps(spec.draft_steps, models.drafter_config.pyramid)
    sampling = choose_sampling(spec, models.sampling)
    rows = read_rows(spec, models.class_names)
    plan = plan_shards(spec, len(rows), spec.batch)
    schema = None if rows.extra is None else rows.extra.schema
    images = open_images(spec, models, spec.seed, draft_steps, plan, schema)

    def settings(on_real_gpus: bool) -> DecodeSettings:
        return choose_settings(spec, spec.seed, draft_steps, sampling, on_real_gpus)

    def identify(on_real_gpus: bool) -> dict[str, Any]:
        return {
            "weights_sha256": models.hashes,
            "decoding": decoding_identity(settings(on_real_gpus)),
            "rows": len(rows),
            "rows_sha256": rows.digest,
            "shard_size": plan.shard_size,
            **image_identity(spec),
        }

    def prepare(session: Session) -> tuple[Work, bool]:
        placement = place(spec.placement, spec.drafters, spec.refiners, session.num_gpus, session.simulated)
        on_real_gpus = placement.mode != "cpu" and not session.simulated
        decoding = settings(on_real_gpus)
        pipeline = Pipeline(
            plan=plan,
            read=ReadLabels(ray.put(rows), plan),
            pools=generate_pools(models, decoding, spec.keep_tokens, placement),
            write=images.writer,
            gpus_per_replica=placement.gpus_per_replica,
            shard_bytes=images.shard_bytes,
        )
        lines = describe_models(models, decoding, (models.drafter_config, models.refiner_config))
        return Work(pipeline, placement, lines, {}), on_real_gpus

    min_cpus = 4 + (spec.drafters or 1) + (spec.refiners or 1)
    object_store = wanted_object_store(spec.refiners or spec.logical_gpus, images.shard_bytes)
    finish = partial(images.finish, models, sampling)
    job = Job(spec, images.store, plan, min_cpus, object_store, identify, prepare, finish)
    return close(job.run(), "dataset, card and contact sheet")


if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["generate", *sys.argv[1:]]))
