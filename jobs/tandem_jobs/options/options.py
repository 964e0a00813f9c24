"""Options that several commands share, in the groups in which `--help` shows them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, model_validator

from tandem.config import SamplingConfig, check_alone
from tandem.errors import InputError
from tandem.images import LOSSY, Codec
from tandem_cluster.elastic import Range
from tandem_cluster.nodes import RAY_JOB
from tandem_jobs.options.flags import COMMAS, flag_of
from tandem_jobs.options.spec import Spec
from tandem_jobs.options.tuned_file import Settings, tuned_options
from tandem_workers.dataset.formats import FormatName
from tandem_workers.storage.layout import MAX_ROWS

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def check_batch_size(value: Any) -> Any:
    """ValueError for anything but a number above 0 or 'auto'."""
    if (value != "auto" and not str(value).isdecimal()) or str(value).strip("0") == "":
        raise ValueError("expected a number above 0, or auto")
    return value


MAX_REPLICAS = 100_000
Replicas = Annotated[int, Field(gt=0, le=MAX_REPLICAS)]
Images = Annotated[int, Field(gt=0, le=MAX_ROWS)]
Threads = Annotated[int, Field(gt=0, le=1024)]
BatchSize = Annotated[Annotated[int, Field(gt=0, le=65_536)] | Literal["auto"], BeforeValidator(check_batch_size)]
Share = Annotated[float, Field(ge=0, le=1)]


class ShardOptions(Spec):
    """What the random numbers of rows depend on, and how rows are cut into shards."""

    seed: NonNegativeInt = Field(0, description="random seed: the same job with the same seed makes the same images")
    shard_size: Images | None = Field(
        None, description="images per shard; default: from --batch and the number of images"
    )


class RowOptions(ShardOptions):
    """Which images to make."""

    needs: ClassVar = {
        "--classes or --labels": ("classes", "labels"),
        "--images or --per-class": ("images", "per_class", "labels"),
    }

    classes: Annotated[str | None, COMMAS] = Field(
        None,
        description="which classes: 'all', or names, synonyms, WordNet ids, label numbers and ranges, separated by "
        "commas: 'face,flag', '0-99,207'; quote a name with commas: 'face,\"dark glasses, shades\"'",
    )
    per_class: Images | None = Field(None, description="images of each class")
    images: Images | None = Field(None, description="images in all, spread evenly over the classes")
    labels: str | None = Field(
        None,
        description="file of label rows (.parquet, .csv, .jsonl; local or s3://) instead of --classes, with a column "
        "'label' (number) or 'class_name' and optionally 'count'. Columns cfg, cfg_schedule, refiner_cfg, top_k, "
        "top_p, temperatures, draft_steps and seed set these for their row (empty: the job's value). Other columns are "
        "copied to the output unchanged; CSV values stay text",
    )

    @model_validator(mode="after")
    def check_rows(self) -> RowOptions:
        if self.labels is None:
            if self.per_class is not None and self.images is not None:
                raise ValueError("expected either --per-class or --images with --classes, got both")
        elif self.classes or self.per_class or self.images:
            raise ValueError("expected --labels alone, got --classes, --per-class or --images with it")
        return self


class ReplicaOptions(Spec):
    """Number of replicas of each stage: fixed, or between a minimum and a maximum."""

    drafters: Replicas | None = Field(None, description="drafter replicas")
    refiners: Replicas | None = Field(None, description="refiner replicas")
    min_drafters: Replicas | None = Field(None, description="drafters to start with; default: 1")
    max_drafters: Replicas | None = Field(
        None,
        description="drafters to grow to: the job requests this many GPUs, from the autoscaler if there is one, and "
        "adapts as nodes join and leave; implies --placement split",
    )
    min_refiners: Replicas | None = Field(None, description="refiners to start with; default: 1")
    max_refiners: Replicas | None = Field(None, description="refiners to grow to")

    @property
    def is_elastic(self) -> bool:
        return self.max_drafters is not None or self.max_refiners is not None

    def ranges(self) -> tuple[Range, Range]:
        """Drafters and refiners of an elastic job."""
        first, second = (
            Range(count or least or 1, count or most or 1)
            for count, least, most in (
                (self.drafters, self.min_drafters, self.max_drafters),
                (self.refiners, self.min_refiners, self.max_refiners),
            )
        )
        return first, second

    @model_validator(mode="after")
    def check_replicas(self) -> ReplicaOptions:
        for role, other in (("drafters", "refiners"), ("refiners", "drafters")):
            count, least, most = (getattr(self, name) for name in (role, f"min_{role}", f"max_{role}"))
            if count and (least or most):
                raise ValueError(f"expected --{role} alone, got --min-{role} or --max-{role} with it")
            if least and not most:
                raise ValueError(f"expected --max-{role} with --min-{role} {least}, got none")
            if least and least > most:
                raise ValueError(f"expected --min-{role} of at most --max-{role} {most}, got {least}")
            if most and not (getattr(self, other) or getattr(self, f"max_{other}")):
                raise ValueError(f"expected --{other} or --max-{other} with --max-{role}, got neither")
        return self


class PreparationOptions(Spec):
    """How the transformers compute, beyond their weights."""

    fold_adaln: bool = Field(
        False,
        description="replace the AdaLN layers by a table of vectors per class in host memory, to save device memory; "
        "not for models with shared AdaLN",
    )
    int8: bool = Field(
        False,
        description="int8 weights and activations in the transformers' blocks, to save memory and time on CPUs; "
        "approximate; refused on GPUs, where bfloat16 is faster",
    )
    fp8: bool = Field(
        False,
        description="float8_e4m3 weights and activations in the transformers' blocks, for speed on GPUs of compute "
        "capability 8.9 or higher (L4, L40S, H100); approximate; CPUs emulate it slowly",
    )
    cuda_graphs: bool | None = Field(
        None,
        description="launch all kernels of a decode as one CUDA graph: same bytes, faster for small models; "
        "keeps their memory allocated; on failure workers warn and run without it; default: on for GPUs",
    )
    kernels: Literal["auto", "plain"] = Field(
        "auto",
        description="auto: on GPUs, fuse the small operations between matrix products into kernels that are tested at "
        "start; if a test fails workers warn and use plain ones",
    )

    @model_validator(mode="after")
    def check_numbers(self) -> PreparationOptions:
        if self.int8 and self.fp8:
            raise ValueError("expected --int8 or --fp8, got both")
        return self


class MeasuredOptions(PreparationOptions):
    """Models and precision of a measurement."""

    drafter: str = Field(
        "embedded", description="'embedded', a file, an address (hf://, https://, s3://), or a name (tandem models)"
    )
    refiner: str = Field("embedded", description="like --drafter; the smaller model")
    vqvae: str = Field("embedded", description="like --drafter; its preset is vae_ch160v4096z32")
    random_weights: bool = Field(False, description="give presets random weights; times are those of real ones")
    dtype: Dtype = Field(
        "auto", description="dtype of weights and activations; auto: bfloat16 on GPUs, float32 on CPUs"
    )


class GuidanceOptions(Spec):
    """Classifier-free guidance: an image has a second row only where its strength is above 0."""

    cfg: float | None = Field(
        None,
        ge=0,
        description="strength: of all scales (constant), or of the last one (linear); default: the model's own",
    )
    cfg_schedule: Annotated[str | None, COMMAS] = Field(
        None,
        description="strength at each scale: linear, from 0 at the first to --cfg at the last, as published; constant; "
        "off-after:k, linear up to scale k and 0 after it; or a number for each scale; default: linear",
    )
    refiner_cfg: float | None = Field(None, ge=0, description="--cfg of the refiner's scales; default: the same")

    @model_validator(mode="after")
    def check_guidance(self) -> Self:
        if self.cfg_schedule is not None:
            text = self.cfg_schedule = self.cfg_schedule.replace(" ", "")
            try:
                SamplingConfig(cfg_schedule=text)
            except InputError as error:
                raise ValueError(f"--cfg-schedule: {str(error).partition(': ')[2]}") from None
            try:
                check_alone(text, [name for name, value in self if value is not None])
            except InputError as error:
                name, _, problem = str(error).partition(":")
                raise ValueError(f"{flag_of(name)}:{problem}") from None
        return self


class TunedOptions(Spec):
    """Settings that were found by measurement."""

    settings: str | None = Field(
        None,
        description="tuned.json of tandem tune: N, guidance, sampling and precision for these models; other options "
        "change them",
    )

    @classmethod
    def filled(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options in the file below those that are given."""
        if (source := given.get("settings")) is None:
            return given
        own = {name: value for name, value in given.items() if value is not None}
        return tuned_options(str(source), tuple(cls.model_fields), own)

    @property
    def always_said(self) -> frozenset[str]:
        return frozenset(Settings.model_fields) if self.settings is not None else frozenset()


class DecodingOptions(PreparationOptions, GuidanceOptions):
    """How tokens are decoded. All but --cuda-graphs changes bytes and is part of the job."""

    vqvae: str = Field("embedded", description="like the models; its preset is vae_ch160v4096z32")
    random_weights: bool = Field(False, description="give presets random weights, to try their size and speed")
    class_names: str | None = Field(
        None,
        description="names of the classes, part of the job: a file (one name a line, .csv or .json; path or address), "
        "'imagenet' or 'numbers'; default: those in the weights, else ImageNet's for 1,000 classes",
    )
    draft_steps: int | None = Field(None, description="N: scales made by the drafter, 1 to K - 1; default: about 0.7 K")
    top_k: NonNegativeInt | None = Field(
        None, description="keep the k most likely codes; 0: all; default: the model's own"
    )
    top_p: Share | None = Field(
        None, description="keep the most likely codes up to this total probability; default: the model's own"
    )
    temperatures: tuple[float, ...] | None = Field(
        None, description="sampling temperatures, one per scale, the last repeats: 1.1,1.0; default: the model's own"
    )
    dtype: Dtype = Field(
        "auto", description="dtype of weights and activations; auto: bfloat16 on GPUs, float32 on CPUs"
    )
    threads: Threads = Field(1, description="CPU threads of each replica; part of the job, as it affects rounding")


class PlaceOptions(Spec):
    """Cluster and output."""

    logical_gpus: NonNegativeInt = Field(
        4,
        le=MAX_REPLICAS,
        description="simulated GPUs on a machine without any: replicas are pinned as on real ones, at CPU speed",
    )
    address: str | None = Field(None, description="Ray cluster to join (also RAY_ADDRESS); default: start Ray here")
    max_failed_shards: NonNegativeInt = Field(
        0, description="leave out up to this many shards that cannot be made, and list them at the end"
    )
    out: str = Field(description="folder or s3://bucket/prefix of the dataset; the same command resumes there")
    overwrite: bool = Field(False, description="replace the dataset in --out")
    shards: str | None = Field(
        None,
        description="make only these shards, FIRST-LAST/ALL such as 0-9/40: several jobs can share one dataset; the "
        "one that commits the last shard finishes it",
    )

    @model_validator(mode="after")
    def check_place(self) -> PlaceOptions:
        if self.shards and self.overwrite:
            raise ValueError("expected --shards without --overwrite, which would remove what other jobs have made")
        if self.shards and self.max_failed_shards:
            raise ValueError(
                "expected --shards without --max-failed-shards: only a job of all shards can leave some out"
            )
        if "://" not in self.out and not os.path.isabs(self.out) and RAY_JOB in os.environ:
            raise ValueError(
                f"--out: expected s3://bucket/prefix or an absolute path that all nodes share, got {self.out}; "
                "Ray removes the folder in which a submitted job runs"
            )
        return self


class JobOptions(PlaceOptions, DecodingOptions):
    """Batches of a job."""

    batch: BatchSize = Field(
        32,
        description="images per forward; part of the job, as short batches are padded; auto: the largest batch that "
        "fits the smallest device by counted bytes and leaves 32 shards",
    )
    device_memory_gb: float | None = Field(
        None, gt=0, description="for --batch auto: gigabytes that a replica may use; default: measured on the nodes"
    )

    @model_validator(mode="after")
    def check_batch(self) -> JobOptions:
        if self.batch == "auto" and self.shards:
            raise ValueError("expected a number for --batch with --shards: all parts have to agree on it; got auto")
        if self.device_memory_gb is not None and self.batch != "auto":
            raise ValueError(f"expected --batch auto with --device-memory-gb, got --batch {self.batch}")
        return self


class ImageOptions(Spec):
    """How images are stored."""

    format: FormatName = Field("webdataset", description="layout of the output")
    codec: Codec = Field("png", description="format of the image files; png is lossless")
    quality: int = Field(92, ge=1, le=100, description=f"quality of {LOSSY}")
    keep_tokens: bool = Field(False, description="also write the token ids of every image")
