"""`tandem refine`: turns drafts into images or edits, with refiners alone and any number of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import Field

from tandem.class_names import ClassNames
from tandem.config import SamplingConfig, numbers
from tandem.errors import InputError
from tandem_cluster.placement import Placement, place_alone
from tandem_cluster.session import Session
from tandem_jobs.edits.edit_dataset import edited
from tandem_jobs.edits.edit_options import BlendOptions, MovedOptions
from tandem_jobs.edits.edit_sources import open_again
from tandem_jobs.options.flags import flag_of
from tandem_jobs.options.options import Replicas
from tandem_jobs.run.batch_size import REFINERS, Workload, choose_batch
from tandem_jobs.run.decode_choices import (
    check_gpus_here,
    check_preparation,
    choose_sampling,
    describe_models,
    warn_if_unsuited,
)
from tandem_jobs.run.image_output import REQUIRED_FILES, ImageJobOptions, open_images
from tandem_jobs.run.job import Job
from tandem_jobs.run.job_inputs import open_output
from tandem_jobs.run.pipeline import Pipeline, refine_pool
from tandem_jobs.run.progress import say
from tandem_workers.dataset.drafts import Drafts, open_drafts
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.identity import EDIT, drafts_identity, refined_edit_identity
from tandem_workers.dataset.row_settings import GUIDANCE_SETTINGS, SAMPLING_SETTINGS
from tandem_workers.dataset.shards import PrefixShard, ShardRows
from tandem_workers.models.model_set import ModelSet, resolve_models
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.stages.refiner import Refiner
from tandem_workers.storage.places import open_store

EXAMPLES = """examples:
  tandem refine --drafts drafts --out refined
  tandem refine --drafts s3://bucket/drafts --out s3://bucket/images --refiner var_d16.pth \\
      --vqvae vae_ch160v4096z32.pth --batch 64
  tandem refine --drafts drafts --draft-steps 3 --cfg 2 --out guided
  tandem refine --drafts drafts-of-edits --blend paste --out edited

Seed, class names and columns come from the drafts. A smaller --draft-steps than drafted cuts the prefixes.
The same command resumes where it stopped."""


class RefineSpec(BlendOptions, MovedOptions, ImageJobOptions):
    """Finish drafted images or edits, with refiners and the VQVAE alone."""

    drafts: str = Field(
        description="the drafts of a finished 'tandem draft' or 'tandem draft-edits': a folder or s3://bucket/prefix"
    )
    refiner: str = Field(
        "embedded", description="'embedded', a file, an address (hf://, https://, s3://), or a name (tandem models)"
    )
    placement: Literal["auto", "gpu", "cpu"] = Field("auto", description="gpu: one refiner per GPU; cpu: CPU processes")
    refiners: Replicas | None = Field(None, description="refiner replicas; default: one per GPU, or one on the CPU")


OF_EDITS = (*BlendOptions.__annotations__, *MovedOptions.__annotations__)  # options for drafts of edits alone


@dataclass(frozen=True)
class ReadDrafts:
    """The first stage: a shard's number becomes its prefixes, cut to the scales that are wanted."""

    name = "read"

    drafts: Drafts
    draft_steps: int
    renamed: Mapping[str, str]  # settings columns that flags override: name -> name under which they are kept

    def load(self) -> ReadDrafts:
        return self

    def __call__(self, shard: ShardRows) -> PrefixShard:
        prefixes = self.drafts.read(shard.shard, self.draft_steps)
        extra = {self.renamed.get(name, name): column for name, column in prefixes.extra.items()}
        return replace(prefixes, extra=extra)


def drafted_sampling(spec: RefineSpec, drafted: SamplingConfig, suited: SamplingConfig) -> SamplingConfig:
    """The sampling of drafts, where flags do not say otherwise. The refiner has the strength that suits both models, as
    in `generate`, unless the drafts say one, or --cfg says one for both."""
    if spec.cfg is not None:
        return replace(drafted, refiner_cfg=None)
    return replace(drafted, refiner_cfg=suited.refiner_cfg) if drafted.refiner_cfg is None else drafted


def overridden(spec: RefineSpec, drafts: Drafts, columns: Sequence[str]) -> dict[str, str]:
    """Settings columns of the drafts that flags override for all images, and the names under which they are kept.

    InputError if such a name is taken, or if a data column of an older version has the name of a setting.
    """
    replaced = {name for name in SAMPLING_SETTINGS if getattr(spec, name) is not None}
    strengths = [name for name in ("cfg", "refiner_cfg") if name in replaced]
    if strengths and "cfg_schedule" in drafts.row_settings and "cfg_schedule" not in replaced:
        raise InputError(
            f"{flag_of(strengths[0])}: expected --cfg-schedule with it: the drafts have a schedule in each row"
        )
    if "cfg" in replaced:
        replaced.add("refiner_cfg")
    if numbers(spec.cfg_schedule or ""):
        replaced |= {"cfg", "refiner_cfg"}
    renamed = {
        name: f"drafted_{name}" for name in SAMPLING_SETTINGS if name in replaced.intersection(drafts.row_settings)
    }
    for name, kept in renamed.items():
        if kept in columns:
            raise InputError(f"--{name.replace('_', '-')}: expected no column {kept} in the drafts, which it needs")
    if stray := sorted(set(SAMPLING_SETTINGS) & set(columns) - set(drafts.row_settings)):
        raise InputError(
            f"--drafts: column {stray[0]!r}: expected the setting that rows were drafted with, got data of this name",
            "an older version carried it along; draft again, with the column renamed",
        )
    return renamed


def check_names(drafts: Drafts, names: ClassNames) -> None:
    """InputError if class names differ from those by which the labels of the drafts were chosen."""
    drafted = ClassNames(drafts.drafter.class_names or ())
    if differ := [label for label, name in enumerate(drafted) if name != names[label] and not drafted.are_numbers]:
        there, here = drafted[differ[0]], names[differ[0]]
        raise InputError(f"--class-names: expected those of the drafts, got {here!r} for {there!r} (label {differ[0]})")


class RefineJob(Job):
    """Prefixes to images, by refiners alone."""

    result = "dataset, card and contact sheet"
    required_files = REQUIRED_FILES

    def __init__(self, spec: RefineSpec) -> None:
        say("checking drafts, models and --out")
        check_gpus_here(spec, spec.address, spec.placement == "cpu")
        self.spec = spec
        drafts = self.drafts = open_drafts(open_store(spec.drafts))
        self.models = resolve_models(drafts.drafter, spec.refiner, spec.vqvae, spec.random_weights, spec.class_names)
        check_names(drafts, self.models.class_names)
        check_preparation(spec, {"refiner": self.models.refiner_config})
        check_vqvae(drafts, self.models)
        self.edits, self.put_back = None, PutBack(spec.chosen_blend, spec.feather)
        if drafts.edits is not None:
            self.edits = open_again(drafts.edits, spec, self.models.image_size, "--drafts")
            self.models = replace(self.models, class_names=self.models.class_names.with_none())
        elif given := [name for name in OF_EDITS if getattr(spec, name) is not None]:
            raise InputError(f"--{given[0]}: expected drafts of edits (tandem draft-edits), got drafts of images")
        self.seed, self.draft_steps = drafts.seed, choose_drafted_steps(spec.draft_steps, drafts)
        drafted = drafted_sampling(spec, drafts.sampling, self.models.sampling)
        self.sampling = choose_sampling(spec, drafted, self.models.drafter_config.pyramid)
        schema, plan = drafts.extra_schema(), drafts.plan
        self.renamed = overridden(spec, drafts, schema.names)
        self.row_settings = tuple(name for name in drafts.row_settings if name not in self.renamed)
        known = [] if set(GUIDANCE_SETTINGS) & set(self.row_settings) else [self.sampling]  # rows: workers read them
        warn_if_unsuited(self.models, (self.draft_steps,), known, ("refiner",))
        store = open_output(spec)
        replicas = spec.refiners or (spec.logical_gpus if spec.placement == "gpu" else 1)
        on_cpu, own = spec.placement == "cpu", self.row_settings
        workload = Workload(
            self.models, (REFINERS,), self.draft_steps, self.sampling, replicas, on_cpu, row_settings=own
        )
        self.batch = choose_batch(spec, store, workload, plan.num_rows, plan.shard_size)
        self.source = drafts_identity(drafts.identity)
        extra = schema.empty_table().rename_columns([self.renamed.get(name, name) for name in schema.names])
        self.images = open_images(spec, store, self.models, self.seed, self.draft_steps, plan, extra, own)
        if self.edits is not None:
            self.images = edited(self.images, (), self.edits.pictures, self.put_back)
        self.num_producers = spec.refiners or spec.logical_gpus
        self.shard_bytes = self.images.shard_bytes
        super().__init__(spec, store, plan)

    def identity(self, on_real_gpus: bool) -> dict[str, Any]:
        edits = {} if self.edits is None else refined_edit_identity(asdict(self.put_back))
        return super().identity(on_real_gpus) | self.images.identity | edits

    def info(self) -> dict[str, Any]:
        return super().info() | ({} if self.drafts.edits is None else {EDIT: dict(self.drafts.edits)})

    def place(self, session: Session) -> tuple[Placement, list[str]]:
        spec = self.spec
        return place_alone("refine", spec.placement, spec.refiners, session.num_gpus, session.simulated), []

    def describe(self) -> list[str]:
        drafts = [f"drafts: {self.drafts.store.uri}, N = {self.drafts.draft_steps}"]
        columns = [f"column {kept}: the {name} that each row was drafted with" for name, kept in self.renamed.items()]
        edits = [] if self.edits is None else [self.edits.line]
        return (
            drafts + edits + columns + describe_models(self.models, self.decoding, (None, self.models.refiner_config))
        )

    def pipeline(self) -> Pipeline:
        read = ReadDrafts(self.drafts, self.draft_steps, self.renamed)
        refine = Refiner(self.models, self.decoding, self.spec.keep_tokens)
        return Pipeline(
            plan=self.plan,
            pools=[refine_pool(self.placement, read, refine)],
            write=self.images.writer(self.record.epoch),
            gpus_per_replica=self.placement.gpus_per_replica,
            shard_bytes=self.shard_bytes,
        )

    def files(self, entries: Sequence[ManifestEntry], failed: Mapping[int, str]) -> dict[str, bytes]:
        return self.images.render(self.sampling, self.record, entries, failed)


def check_vqvae(drafts: Drafts, models: ModelSet) -> None:
    """InputError for another VQVAE than that of the drafts: its codes mean something else."""
    drafted_for = drafts.identity.weights["vqvae"]
    if models.vqvae.sha256 != drafted_for:
        raise InputError(f"--vqvae: expected that of the drafts, sha256 {drafted_for}, got {models.vqvae.sha256}")


def choose_drafted_steps(asked: int | None, drafts: Drafts) -> int:
    """The requested N, else the number of drafted scales. Raises InputError."""
    draft_steps = drafts.draft_steps if asked is None else asked
    if not 1 <= draft_steps <= drafts.draft_steps:
        raise InputError(f"--draft-steps: expected 1 to {drafts.draft_steps}, the drafted scales, got {draft_steps}")
    return draft_steps


def run(spec: RefineSpec) -> dict[str, Any]:
    """Refine the missing shards, and return the summary."""
    job = RefineJob(spec)
    if not job.is_done():
        with job.session() as session:
            job.begin(session, *job.place(session))
            job.make(job.pipeline(), session)
    return job.close()
