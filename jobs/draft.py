"""`tandem draft`: the drafter's half of the work as a dataset of its own, to be refined elsewhere and later."""

from __future__ import annotations

from typing import Any, Literal

import ray
from pydantic import Field

from cluster.plan import place_alone
from cluster.session import Session
from jobs.batch import DRAFTERS, Decoding, choose_batch
from jobs.flow import wanted_object_store
from jobs.options import JobOptions, Replicas, RowOptions
from jobs.pipeline import Pipeline, ReadLabels, Writer, draft_pool
from jobs.progress import say
from jobs.row_identity import row_identity
from jobs.row_settings import fill_settings
from jobs.running import Job, Work, close, open_output, plan_shards, read_rows
from jobs.settings import (
    check_gpus_here,
    check_preparation,
    choose_draft_steps,
    choose_sampling,
    choose_settings,
    decoding_identity,
    describe_models,
)
from tandem.config import to_dict
from tandem.errors import LabelError
from workers.closing import no_files
from workers.columns import check_carried
from workers.decode_settings import DecodeSettings
from workers.drafts import KIND, DraftFormat
from workers.models import resolve_models

EXAMPLES = """examples:
  tandem draft --classes all --per-class 20 --out drafts
  tandem refine --drafts drafts --out refined
  tandem draft --drafter var_d30.pth --vqvae vae_ch160v4096z32.pth --draft-steps 9 --classes 0-999 --per-class 1300 \\
      --batch 64 --out s3://bucket/drafts

Drafts are 182 to 848 bytes an image (N = 6 to 9 of the published pyramid). Draft and refine with the same settings
give the bytes that 'tandem generate' gives. The same command again goes on where it stopped."""


class DraftSpec(JobOptions, RowOptions):
    """Make the coarse token maps of a dataset and keep them: drafters alone."""

    drafter: str = Field(
        "embedded", description="'embedded', a file, an address (hf://, https://, s3://), or a name (tandem models)"
    )
    placement: Literal["auto", "gpu", "cpu"] = Field("auto", description="gpu: one drafter on each; cpu: processes")
    drafters: Replicas | None = Field(None, description="drafter replicas; default: every GPU, or one on the CPU")


def run(spec: DraftSpec) -> dict[str, Any]:
    """Check everything, draft what is missing, and return the summary."""
    say("checking models, rows and --out")
    check_gpus_here(spec, spec.address, spec.placement == "cpu")
    models = resolve_models(spec.drafter, None, spec.vqvae, spec.random_weights, spec.class_names)
    check_preparation(spec, {"drafter": models.drafter_config})
    draft_steps = choose_draft_steps(spec.draft_steps, models.drafter_config.pyramid)
    sampling = choose_sampling(spec, models.sampling)
    rows = read_rows(spec, models.class_names)
    where = f"--labels: {spec.labels}"
    if rows.extra is not None:
        check_carried(rows.extra, KIND)
    if rows.unfilled_settings is not None and "draft_steps" in rows.unfilled_settings.column_names:
        raise LabelError(
            f"{where}: column 'draft_steps': expected none, as drafts keep equally many tokens of every row",
            "give --draft-steps, make drafts of each N apart, or use tandem generate",
        )
    rows = fill_settings(rows, sampling, draft_steps, spec.seed, models.drafter_config.pyramid, where)
    store = open_output(spec)
    replicas = spec.drafters or (spec.logical_gpus if spec.placement == "gpu" else 1)
    on_cpu, own = spec.placement == "cpu", rows.row_settings
    on_device = Decoding(models, (DRAFTERS,), draft_steps, sampling, replicas, on_cpu, row_settings=own)
    batch = choose_batch(spec, store, on_device, len(rows), spec.shard_size)
    plan = plan_shards(spec, len(rows), batch)
    row_fields = row_identity(rows, store, spec.overwrite)
    shard_bytes = plan.shard_size * 2 * models.drafter_config.pyramid.offsets[draft_steps]

    def settings(on_real_gpus: bool) -> DecodeSettings:
        return choose_settings(spec, spec.seed, draft_steps, sampling, batch, on_real_gpus, rows.row_settings)

    def identify(on_real_gpus: bool) -> dict[str, Any]:
        return {
            "kind": KIND,
            "weights_sha256": models.hashes,
            "decoding": decoding_identity(settings(on_real_gpus)),
            **row_fields,
            "shard_size": plan.shard_size,
            **models.names_identity,
        }

    def prepare(session: Session) -> tuple[Work, bool]:
        placement = place_alone("draft", spec.placement, spec.drafters, session.num_gpus, session.simulated)
        on_real_gpus = placement.mode != "cpu" and not session.simulated
        decoding = settings(on_real_gpus)
        about = {
            "source": models.drafter.source,
            "part": models.drafter.part,
            "config": to_dict(models.drafter_config),
        }
        pipeline = Pipeline(
            plan=plan,
            read=ReadLabels(ray.put(rows), plan),
            pools=[draft_pool(models, decoding, placement)],
            write=Writer(None, DraftFormat(), plan, store),
            gpus_per_replica=placement.gpus_per_replica,
            shard_bytes=shard_bytes,
        )
        lines = describe_models(models, decoding, (models.drafter_config, None))
        return Work(pipeline, placement, lines, models.record | {"drafter": about}), on_real_gpus

    object_store = wanted_object_store(spec.drafters or spec.logical_gpus, shard_bytes)
    job = Job(spec, store, plan, object_store, identify, prepare, no_files)
    return close(job.run(), "drafts")
