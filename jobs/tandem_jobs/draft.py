"""`tandem draft`: the drafter's half of the work as a dataset of its own, to be refined later or elsewhere."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import ray
from pydantic import Field

from tandem.config import Pyramid, to_dict
from tandem.errors import LabelError
from tandem_cluster.placement import Placement, place_alone
from tandem_cluster.profile_file import StageName
from tandem_cluster.session import Session
from tandem_jobs.labels.labels import LabelRows, ReadLabels
from tandem_jobs.labels.row_identity import row_identity
from tandem_jobs.labels.settings_columns import fill_settings
from tandem_jobs.options.options import JobOptions, Replicas, RowOptions, ShardOptions
from tandem_jobs.run.batch_size import DRAFTERS, Workload, choose_batch
from tandem_jobs.run.decode_choices import (
    check_gpus_here,
    check_preparation,
    choose_draft_steps,
    choose_sampling,
    warn_if_unsuited,
)
from tandem_jobs.run.job import Job
from tandem_jobs.run.job_inputs import open_output, read_rows
from tandem_jobs.run.pipeline import Pipeline, Writer, draft_pool
from tandem_jobs.run.progress import say
from tandem_jobs.run.shard_size import plan_shards
from tandem_workers.dataset.columns import check_carried
from tandem_workers.dataset.drafts import KIND, DraftFormat
from tandem_workers.models.model_set import resolve_models
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.ray_data import Stage

EXAMPLES = """examples:
  tandem draft --classes all --per-class 20 --out drafts
  tandem refine --drafts drafts --out refined
  tandem draft --drafter var_d30.pth --vqvae vae_ch160v4096z32.pth --draft-steps 9 --classes 0-999 --per-class 1300 \\
      --batch 64 --out s3://bucket/drafts

Drafts take 182 to 848 bytes an image (N = 6 to 9 of the published pyramid). Draft and refine with the same settings
make the same bytes as 'tandem generate'. The same command resumes where it stopped."""


class DrafterOptions(JobOptions, ShardOptions):
    """The drafter, and where it runs."""

    drafter: str = Field(
        "embedded", description="'embedded', a file, an address (hf://, https://, s3://), or a name (tandem models)"
    )
    placement: Literal["auto", "gpu", "cpu"] = Field("auto", description="gpu: one drafter per GPU; cpu: CPU processes")
    drafters: Replicas | None = Field(None, description="drafter replicas; default: one per GPU, or one on the CPU")


class DraftSpec(DrafterOptions, RowOptions):
    """Make and store only the coarse token maps of a dataset, with drafters alone."""


class DraftingJob(Job):
    """Label rows to prefixes of token ids, by drafters alone. A subclass has the rows."""

    result = "drafts"
    kind = KIND
    stages: tuple[StageName, ...] = DRAFTERS  # whose memory the drafters' devices hold

    def __init__(self, spec: DrafterOptions) -> None:
        say("checking models, rows and --out")
        check_gpus_here(spec, spec.address, spec.placement == "cpu")
        self.spec, self.seed = spec, spec.seed
        self.models = resolve_models(spec.drafter, None, spec.vqvae, spec.random_weights, spec.class_names)
        config = self.models.drafter_config
        check_preparation(spec, {"drafter": config})
        self.draft_steps = choose_draft_steps(spec.draft_steps, self.models)
        self.sampling = choose_sampling(spec, self.models.sampling, config.pyramid)
        rows, location = self.read_rows()
        check_columns(rows, location)
        if rows.unfilled_settings is not None:
            rows = fill_settings(rows, self.sampling, self.draft_steps, spec.seed, config.pyramid, location)
        warn_if_unsuited(self.models, (self.draft_steps,), rows.guidances(self.sampling))
        self.rows, self.row_settings = rows, rows.row_settings
        store = open_output(spec)
        replicas = spec.drafters or (spec.logical_gpus if spec.placement == "gpu" else 1)
        on_cpu, own = spec.placement == "cpu", self.row_settings
        workload = Workload(
            self.models, (self.stages,), self.draft_steps, self.sampling, replicas, on_cpu, row_settings=own
        )
        self.batch = choose_batch(spec, store, workload, len(rows), spec.shard_size)
        plan = plan_shards(spec, len(rows), self.batch)
        self.source = row_identity(rows, store, spec.overwrite)
        self.num_producers = spec.drafters or spec.logical_gpus
        self.shard_bytes = plan.shard_size * self.bytes_of_row(config.pyramid)
        super().__init__(spec, store, plan)

    @abstractmethod
    def read_rows(self) -> tuple[LabelRows, str]:
        """The rows, and where they are from, for errors. InputError."""

    def bytes_of_row(self, pyramid: Pyramid) -> int:
        """Bytes of ids that the drafters make of a row."""
        return 2 * pyramid.offsets[self.draft_steps]

    def before_draft(self) -> list[Stage]:
        """What a drafter's actor does between reading rows and drafting."""
        return []

    def info(self) -> dict[str, Any]:
        ref, config = self.models.drafter, to_dict(self.models.drafter_config)
        tuned = self.models.fine_tuned["drafter"].to_header()
        return super().info() | {"drafter": {"source": ref.source, "part": ref.part, "config": config, **tuned}}

    def place(self, session: Session) -> tuple[Placement, list[str]]:
        spec = self.spec
        return place_alone("draft", spec.placement, spec.drafters, session.num_gpus, session.simulated), []

    def pipeline(self) -> Pipeline:
        read = ReadLabels(ray.put(self.rows), self.plan)
        draft = Drafter(self.models, self.decoding)
        return Pipeline(
            plan=self.plan,
            pools=[draft_pool(self.placement, read, *self.before_draft(), draft)],
            write=Writer(None, DraftFormat(), self.plan, self.store, self.record.epoch),
            gpus_per_replica=self.placement.gpus_per_replica,
            shard_bytes=self.shard_bytes,
        )


class DraftJob(DraftingJob):
    """Drafts of classes, or of the rows of a label file."""

    def __init__(self, spec: DraftSpec) -> None:
        self.row_options = spec
        super().__init__(spec)

    def read_rows(self) -> tuple[LabelRows, str]:
        return read_rows(self.row_options, self.models.class_names), f"--labels: {self.row_options.labels}"


def check_columns(rows: LabelRows, location: str) -> None:
    """LabelError for columns that drafts cannot have."""
    if rows.extra is not None:
        check_carried(rows.extra, KIND)
    if rows.unfilled_settings is not None and "draft_steps" in rows.unfilled_settings.column_names:
        raise LabelError(
            f"{location}: column 'draft_steps': expected none, as drafts keep the same number of tokens for every row",
            "give --draft-steps, make a dataset of drafts for each N, or use tandem generate or edit",
        )


def run(spec: DraftSpec) -> dict[str, Any]:
    """Draft the missing shards, and return the summary."""
    return run_job(DraftJob(spec))


def run_job(job: DraftingJob) -> dict[str, Any]:
    """Draft what is missing, and return the summary."""
    if not job.is_done():
        with job.session() as session:
            job.begin(session, *job.place(session))
            job.make(job.pipeline(), session)
    return job.close()
