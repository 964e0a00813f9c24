"""`tandem generate`: a labelled image dataset from a drafter and a refiner, on one machine or a cluster."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import ray
from pydantic import Field, model_validator

from tandem.config import SamplingConfig
from tandem.errors import InputError
from tandem_cluster.elastic import place_elastically
from tandem_cluster.nodes import as_spelt, gpus_by_kind, parse_labels
from tandem_cluster.placement import Placement, PlacementMode, place, place_by_plan, place_mixed, place_on
from tandem_cluster.planner import Request, make_plan
from tandem_cluster.profile_file import Profile, read_profile
from tandem_cluster.session import Session, living_nodes
from tandem_jobs.labels.labels import LabelRows, ReadLabels
from tandem_jobs.labels.row_identity import row_identity
from tandem_jobs.labels.settings_columns import fill_settings
from tandem_jobs.options.flags import COMMAS
from tandem_jobs.options.options import ReplicaOptions, Replicas, RowOptions, ShardOptions, TunedOptions
from tandem_jobs.run.batch_size import COLOCATED, SPLIT, Workload, choose_batch
from tandem_jobs.run.decode_choices import (
    check_gpus_here,
    check_preparation,
    check_tuned,
    choose_draft_steps,
    choose_sampling,
    warn_if_unsuited,
)
from tandem_jobs.run.image_output import REQUIRED_FILES, ImageDataset, ImageJobOptions, open_images
from tandem_jobs.run.job import Job
from tandem_jobs.run.job_inputs import open_output, read_rows
from tandem_jobs.run.pipeline import Pipeline, generate_pools
from tandem_jobs.run.progress import say
from tandem_jobs.run.shard_size import plan_shards
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.models.model_set import ModelSet, resolve_models
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.ray_data import Stage
from tandem_workers.stages.refiner import Refiner
from tandem_workers.storage.store import Store

EXAMPLES = """examples:
  tandem generate --classes all --per-class 20 --out emoji
  tandem generate --classes face,heart,flag --images 90 --out table --format parquet --codec webp
  tandem generate --labels rows.csv --out rows --placement split --drafters 2 --refiners 1
  tandem generate --spec job.yaml --seed 7 --out seed7
  tandem generate --classes all --per-class 20 --out elastic --address auto --max-drafters 8 --max-refiners 4 \\
      --drafters-on ray.io/accelerator-type=H100 --refiners-on ray.io/accelerator-type=L20
  tandem generate --drafter var_d30.pth --refiner var_d16.pth --vqvae vae_ch160v4096z32.pth \\
      --draft-steps 8 --classes 0-999 --per-class 50 --batch 64 --out s3://bucket/imagenet

images/s in the progress, the closing table and the JSON line (images_per_s) means committed images per second from the
first start of a stage to the last commit; starting Ray and loading models are in start_up_s.

The same command resumes where it stopped. Replicas and placement may change; anything that changes a byte is another
job, and is refused in the same --out."""


class PlacedOptions(ImageJobOptions, ReplicaOptions, ShardOptions, TunedOptions):
    """Models, and where they run."""

    drafter: str = Field(
        "embedded", description="'embedded', a file, an address (hf://, https://, s3://), or a name (tandem models)"
    )
    refiner: str = Field("embedded", description="like --drafter; the smaller model")
    placement: PlacementMode = Field(
        "auto",
        description="split: drafters and refiners on separate GPUs; colocated: both on each GPU; mixed: some GPUs "
        "colocated, the others split; cpu: CPU processes; auto: chooses, and says why",
    )
    colocated: Replicas | None = Field(
        None, description="replicas that hold both models, for --placement mixed with --drafters and --refiners"
    )
    profile: tuple[str, ...] | None = Field(
        None, description="profiles, one for each kind of GPU, by which --placement auto plans"
    )
    drafters_on: Annotated[str | None, COMMAS] = Field(
        None, description="Ray labels of the nodes for drafters: ray.io/accelerator-type=H100; for --placement split"
    )
    refiners_on: Annotated[str | None, COMMAS] = Field(None, description="the same for refiners; give both or neither")
    colocated_on: Annotated[str | None, COMMAS] = Field(None, description="the same for --colocated")

    @model_validator(mode="after")
    def check_placement(self) -> PlacedOptions:
        if (self.drafters_on is None) != (self.refiners_on is None):
            raise ValueError("expected --drafters-on and --refiners-on together, got one of them")
        for flag, text in (("--drafters-on", self.drafters_on), ("--refiners-on", self.refiners_on)):
            if text is not None:
                parse_labels(flag, text)
        if self.is_elastic and self.placement not in ("auto", "split"):
            raise ValueError(f"expected --placement split with --max-drafters and --max-refiners, got {self.placement}")
        if self.drafters_on and self.placement not in ("split", "mixed") and not self.is_elastic:
            raise ValueError(f"expected --placement split or mixed with --drafters-on, got {self.placement}")
        self.check_mixed()
        if self.profile and (self.placement != "auto" or self.drafters or self.refiners or self.is_elastic):
            raise ValueError("expected --profile with --placement auto and without --drafters and --refiners")
        if self.profile and self.batch == "auto":
            raise ValueError("expected a profiled number for --batch with --profile, got auto")
        return self

    def check_mixed(self) -> None:
        numbers = self.drafters, self.refiners, self.colocated
        if self.placement == "mixed" and not all(numbers):
            got = ", ".join(str(number or "none") for number in numbers)
            raise ValueError(f"--placement mixed: expected --drafters, --refiners and --colocated, got {got}")
        if self.placement != "mixed" and (self.colocated or self.colocated_on):
            raise ValueError(f"expected --placement mixed with --colocated, got {self.placement}")
        if self.placement == "mixed" and (self.drafters_on is None) != (self.colocated_on is None):
            raise ValueError("expected --colocated-on with --drafters-on and --refiners-on, or none of them")
        if self.colocated_on:
            parse_labels("--colocated-on", self.colocated_on)


class GenerateSpec(PlacedOptions, RowOptions):
    """Synthesise a labelled image dataset: drafters make the coarse token maps, refiners the fine ones."""


class PlacedJob(Job):
    """Label rows to images, by drafters and refiners. A subclass has the rows, and what becomes of the pixels."""

    result = "dataset, card and contact sheet"
    required_files = REQUIRED_FILES

    def __init__(self, spec: PlacedOptions) -> None:
        say("checking models, rows and --out")
        check_gpus_here(spec, spec.address, spec.placement == "cpu")
        self.spec, self.seed = spec, spec.seed
        self.models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights, spec.class_names)
        pyramid = self.models.drafter_config.pyramid
        check_tuned(spec, self.models)
        check_preparation(spec, {"drafter": self.models.drafter_config, "refiner": self.models.refiner_config})
        self.draft_steps = choose_draft_steps(spec.draft_steps, self.models)
        self.sampling = choose_sampling(spec, self.models.sampling, self.models.drafter_config.pyramid)
        self.profiles = [read_profile(source) for source in spec.profile or ()]
        rows, location = self.read_rows()
        if rows.unfilled_settings is not None:
            rows = fill_settings(rows, self.sampling, self.draft_steps, spec.seed, pyramid, location)
        warn_if_unsuited(self.models, rows.draft_steps or (self.draft_steps,), rows.guidances(self.sampling))
        self.rows, self.row_settings = rows, rows.row_settings
        store = open_output(spec)
        self.batch = choose_batch(spec, store, self.workload(), len(rows), spec.shard_size)
        plan = plan_shards(spec, len(rows), self.batch)
        self.source = row_identity(rows, store, spec.overwrite)
        self.images = self.open_dataset(store, plan)
        self.num_producers = (spec.refiners or spec.max_refiners or spec.logical_gpus) + (spec.colocated or 0)
        self.shard_bytes = self.images.shard_bytes
        super().__init__(spec, store, plan)

    @abstractmethod
    def read_rows(self) -> tuple[LabelRows, str]:
        """The rows, and where they are from, for errors. InputError."""

    def open_dataset(self, store: Store, plan: ShardPlan) -> ImageDataset:
        """The dataset to be made. InputError for columns that its format cannot hold."""
        steps, own = self.draft_steps, self.row_settings
        return open_images(self.spec, store, self.models, self.seed, steps, plan, self.rows.extra, own)

    def workload(self) -> Workload:
        """What the memory of a batch depends on."""
        return workload_of(self.spec, self.models, self.draft_steps, self.sampling, self.rows)

    def before_draft(self) -> list[Stage]:
        """What a drafter's actor does between reading rows and drafting."""
        return []

    def identity(self, on_real_gpus: bool) -> dict[str, Any]:
        return super().identity(on_real_gpus) | self.images.identity

    def place(self, session: Session) -> tuple[Placement, list[str]]:
        return choose_placement(self.spec, self.batch, self.profiles, session, self.draft_steps, len(self.rows))

    def pipeline(self) -> Pipeline:
        read = ReadLabels(ray.put(self.rows), self.plan)
        draft = Drafter(self.models, self.decoding)
        refine = Refiner(self.models, self.decoding, self.spec.keep_tokens)
        return Pipeline(
            plan=self.plan,
            pools=generate_pools(self.placement, [read, *self.before_draft(), draft], refine),
            write=self.images.writer(self.record.epoch),
            gpus_per_replica=self.placement.gpus_per_replica,
            shard_bytes=self.shard_bytes,
        )

    def files(self, entries: Sequence[ManifestEntry], failed: Mapping[int, str]) -> dict[str, bytes]:
        return self.images.render(self.sampling, self.record, entries, failed)


class GenerateJob(PlacedJob):
    """Images of classes, or of the rows of a label file."""

    def __init__(self, spec: GenerateSpec) -> None:
        self.row_options = spec
        super().__init__(spec)

    def read_rows(self) -> tuple[LabelRows, str]:
        return read_rows(self.row_options, self.models.class_names), f"--labels: {self.row_options.labels}"


def run(spec: GenerateSpec) -> dict[str, Any]:
    """Make the missing shards of a dataset of images, and return the summary."""
    return run_job(GenerateJob(spec))


def run_job(job: PlacedJob) -> dict[str, Any]:
    """Make what is missing, close the dataset, and return the summary."""
    if not job.is_done():
        with job.session() as session:
            job.begin(session, *job.place(session))
            job.make(job.pipeline(), session)
    return job.close()


def workload_of(
    spec: PlacedOptions, models: ModelSet, draft_steps: int, sampling: SamplingConfig, rows: LabelRows
) -> Workload:
    """What the memory of a batch depends on. If the placement is not known yet, all models may share a device."""
    apart = spec.placement == "split" or spec.is_elastic
    replicas = sum(role.most for role in spec.ranges())
    if spec.placement in ("split", "colocated") and not (spec.drafters and spec.refiners):
        replicas = max(replicas, spec.logical_gpus)
    shared, on_cpus = SPLIT if apart else COLOCATED, spec.placement == "cpu"
    own = rows.row_settings, rows.draft_steps
    return Workload(models, shared, draft_steps, sampling, replicas, on_cpus, spec.is_elastic, *own)


def choose_placement(
    spec: PlacedOptions, batch: int, profiles: list[Profile], session: Session, draft_steps: int, num_images: int
) -> tuple[Placement, list[str]]:
    """Placement by labels, by profiles, or by number alone, and lines that explain it."""
    if spec.is_elastic:
        return choose_elastic_placement(spec, session)
    if spec.drafters and spec.refiners and spec.colocated:
        flags = {"--drafters-on": spec.drafters_on, "--refiners-on": spec.refiners_on}
        flags["--colocated-on"] = spec.colocated_on
        labels = [parse_labels(flag, text) for flag, text in flags.items() if text]
        return place_mixed(spec.drafters, spec.refiners, spec.colocated, labels, living_nodes()), []
    if spec.drafters_on and spec.refiners_on:
        on = parse_labels("--drafters-on", spec.drafters_on), parse_labels("--refiners-on", spec.refiners_on)
        return place_on(living_nodes(), *on, spec.drafters, spec.refiners), []
    if not profiles:
        return place(spec.placement, spec.drafters, spec.refiners, session.num_gpus, session.simulated), []
    nodes = living_nodes()
    counts, known = gpus_by_kind(nodes), {profile.kind for profile in profiles}
    if not counts or not set(counts) <= known:
        there = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "no GPUs"
        raise InputError(
            f"--profile: expected profiles of the cluster's GPUs ({there}), got those of {', '.join(sorted(known))}",
            "made by: tandem profile --kind KIND",
        )
    request = Request(counts, num_images, draft_steps=draft_steps, batch=batch)
    plan = make_plan(profiles, request)
    lines = [f"next best: {option.mode}, {option.images_per_s:.1f} images/s" for option in plan.runners_up[:1]]
    return place_by_plan(plan.best, nodes), lines


def choose_elastic_placement(spec: PlacedOptions, session: Session) -> tuple[Placement, list[str]]:
    """The placement of an elastic job, on nodes that may not have joined yet."""
    on = None
    if spec.drafters_on and spec.refiners_on:
        nodes = living_nodes()
        drafters_on = as_spelt(parse_labels("--drafters-on", spec.drafters_on), nodes)
        on = drafters_on, as_spelt(parse_labels("--refiners-on", spec.refiners_on), nodes)
    placement = place_elastically(*spec.ranges(), on, session.num_gpus, session.can_grow)
    unknown = spec.dtype == "auto" and not session.num_gpus
    return placement, ["no GPU has joined yet: real ones are expected, so dtype is bfloat16"] * unknown
