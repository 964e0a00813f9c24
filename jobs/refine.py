"""`tandem refine`: drafts in, images out, by refiners alone and as often as wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from pydantic import Field

from cluster.plan import place_alone
from cluster.session import Session
from jobs.batch import REFINERS, Decoding, choose_batch
from jobs.flow import wanted_object_store
from jobs.images import CLOSES_WITH, ImageJobOptions, image_identity, open_images
from jobs.options import Replicas
from jobs.pipeline import Pipeline, refine_pool
from jobs.progress import say
from jobs.running import Job, Work, close, open_output
from jobs.settings import (
    check_gpus_here,
    check_preparation,
    choose_sampling,
    choose_settings,
    decoding_identity,
    describe_models,
)
from tandem.class_names import ClassNames
from tandem.errors import InputError
from workers.decode_settings import DecodeSettings
from workers.drafts import Drafts, open_drafts
from workers.models import resolve_models
from workers.places import open_store
from workers.row_settings import SAMPLING_SETTINGS
from workers.shards import PrefixShard

EXAMPLES = """examples:
  tandem refine --drafts drafts --out refined
  tandem refine --drafts s3://bucket/drafts --out s3://bucket/images --refiner var_d16.pth \\
      --vqvae vae_ch160v4096z32.pth --batch 64
  tandem refine --drafts drafts --draft-steps 3 --cfg 2 --out guided

Seed, class names and columns come from the drafts. --draft-steps below what was drafted cuts the prefixes.
The same command again goes on where it stopped."""


class RefineSpec(ImageJobOptions):
    """Finish drafted images: refiners, and the VQVAE, alone."""

    drafts: str = Field(description="place of a finished 'tandem draft': a folder or s3://bucket/prefix")
    refiner: str = Field(
        "embedded", description="'embedded', a file, an address (hf://, https://, s3://), or a name (tandem models)"
    )
    placement: Literal["auto", "gpu", "cpu"] = Field("auto", description="gpu: one refiner on each; cpu: processes")
    refiners: Replicas | None = Field(None, description="refiner replicas; default: every GPU, or one on the CPU")


@dataclass(frozen=True)
class ReadDrafts:
    """Prefixes of a shard, cut to the scales that are wanted."""

    drafts: Drafts
    draft_steps: int
    renamed: Mapping[str, str]  # columns whose values are not those of the images

    def __call__(self, shard: int) -> PrefixShard:
        prefixes = self.drafts.read(shard, self.draft_steps)
        extra = {self.renamed.get(name, name): column for name, column in prefixes.extra.items()}
        return replace(prefixes, extra=extra)


def overridden(spec: RefineSpec, drafts: Drafts, columns: Sequence[str]) -> dict[str, str]:
    """Settings of the drafts' rows that flags replace for all images: the names under which they are kept.

    InputError where such a name is taken, or where a column of an older version looks like a setting and is none.
    """
    renamed = {
        name: f"drafted_{name}"
        for name in SAMPLING_SETTINGS
        if name in drafts.row_settings and getattr(spec, name) is not None
    }
    for name, kept in renamed.items():
        if kept in columns:
            raise InputError(f"--{name.replace('_', '-')}: expected no column {kept} in the drafts, which it needs")
    if stray := sorted(set(SAMPLING_SETTINGS) & set(columns) - set(drafts.row_settings)):
        raise InputError(
            f"--drafts: column {stray[0]!r}: expected the setting that rows were drafted with, got data of that name",
            "an older version carried it along; draft again, with the column renamed",
        )
    return renamed


def check_names(drafts: Drafts, names: ClassNames) -> None:
    """InputError where classes are to be called otherwise than when their labels were chosen by name."""
    drafted = ClassNames(drafts.drafter.class_names or ())
    if differ := [label for label, name in enumerate(drafted) if name != names[label] and not drafted.are_numbers]:
        there, here = drafted[differ[0]], names[differ[0]]
        raise InputError(f"--class-names: expected those of the drafts, got {here!r} for {there!r} (label {differ[0]})")


def run(spec: RefineSpec) -> dict[str, Any]:
    """Check everything, refine what is missing, and return the summary."""
    say("checking drafts, models and --out")
    check_gpus_here(spec, spec.address, spec.placement == "cpu")
    drafts = open_drafts(open_store(spec.drafts))
    models = resolve_models(drafts.drafter, spec.refiner, spec.vqvae, spec.random_weights, spec.class_names)
    check_names(drafts, models.class_names)
    check_preparation(spec, {"refiner": models.refiner_config})
    drafted_for = drafts.identity["weights_sha256"]["vqvae"]
    if models.vqvae.sha256 != drafted_for:
        raise InputError(f"--vqvae: expected that of the drafts, sha256 {drafted_for}, got {models.vqvae.sha256}")
    draft_steps = drafts.draft_steps if spec.draft_steps is None else spec.draft_steps
    if not 1 <= draft_steps <= drafts.draft_steps:
        raise InputError(f"--draft-steps: expected 1 to {drafts.draft_steps}, which were drafted, got {draft_steps}")
    sampling = choose_sampling(spec, drafts.sampling)
    schema, plan = drafts.extra_schema(), drafts.plan
    renamed = overridden(spec, drafts, schema.names)
    row_settings = tuple(name for name in drafts.row_settings if name not in renamed)
    store = open_output(spec)
    replicas = spec.refiners or (spec.logical_gpus if spec.placement == "gpu" else 1)
    on_cpu = spec.placement == "cpu"
    on_device = Decoding(models, (REFINERS,), draft_steps, sampling, replicas, on_cpu, row_settings=row_settings)
    batch = choose_batch(spec, store, on_device, plan.num_rows, plan.shard_size)
    extra = schema.empty_table().rename_columns([renamed.get(name, name) for name in schema.names])
    images = open_images(spec, store, models, drafts.seed, draft_steps, plan, extra, row_settings)

    def settings(on_real_gpus: bool) -> DecodeSettings:
        return choose_settings(spec, drafts.seed, draft_steps, sampling, batch, on_real_gpus, row_settings)

    def identify(on_real_gpus: bool) -> dict[str, Any]:
        return {
            "weights_sha256": models.hashes,
            "decoding": decoding_identity(settings(on_real_gpus)),
            "drafts": drafts.identity,
            "rows": plan.num_rows,
            "shard_size": plan.shard_size,
            **models.names_identity,
            **image_identity(spec),
        }

    def prepare(session: Session) -> tuple[Work, bool]:
        placement = place_alone("refine", spec.placement, spec.refiners, session.num_gpus, session.simulated)
        on_real_gpus = placement.mode != "cpu" and not session.simulated
        decoding = settings(on_real_gpus)
        pipeline = Pipeline(
            plan=plan,
            read=ReadDrafts(drafts, draft_steps, renamed),
            pools=[refine_pool(models, decoding, spec.keep_tokens, placement)],
            write=images.writer,
            gpus_per_replica=placement.gpus_per_replica,
            shard_bytes=images.shard_bytes,
        )
        lines = [f"drafts: {drafts.store.uri}, N = {drafts.draft_steps}"]
        lines += [f"column {kept}: the {name} that each row was drafted with" for name, kept in renamed.items()]
        lines += describe_models(models, decoding, (None, models.refiner_config))
        return Work(pipeline, placement, lines, models.record), on_real_gpus

    render = partial(images.render, models, sampling)
    object_store = wanted_object_store(spec.refiners or spec.logical_gpus, images.shard_bytes)
    job = Job(spec, store, plan, object_store, identify, prepare, render, CLOSES_WITH)
    return close(job.run(), "dataset, card and contact sheet")
