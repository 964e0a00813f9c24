"""The output of jobs that make images: checks before the start, the card and the closing marker at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tandem.config import SamplingConfig, to_dict
from tandem.images import Provenance
from tandem_jobs.options.options import ImageOptions, JobOptions
from tandem_jobs.run.pipeline import Writer
from tandem_jobs.run.shard_range import command_line, full_command
from tandem_jobs.run.versions import software
from tandem_workers.dataset.card import CardInfo, closing_files
from tandem_workers.dataset.claim import JobRecord
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.formats import DatasetFormat
from tandem_workers.dataset.identity import Identity, image_identity
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.models.model_set import ModelSet
from tandem_workers.stages.encoder import ImageEncoder
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

REQUIRED_FILES = (layout.CARD, layout.CONTACT_SHEET)


class ImageJobOptions(ImageOptions, JobOptions):
    """Options of a job that makes images."""


@dataclass(frozen=True)
class ImageDataset:
    """A dataset of images to be made."""

    store: Store
    fmt: DatasetFormat
    plan: ShardPlan
    options: ImageJobOptions
    models: ModelSet
    carried: pa.Schema  # the columns carried along from the label file, and the settings of each row
    row_settings: tuple[str, ...] = ()

    @property
    def shard_bytes(self) -> int:
        """Bytes of a shard's pixels."""
        return self.plan.shard_size * 3 * self.models.image_size**2

    @property
    def identity(self) -> dict[str, Any]:
        """What of the output changes bytes."""
        options = self.options
        return image_identity(options.format, options.codec, options.quality, options.keep_tokens)

    def writer(self, epoch: int) -> Writer:
        """The last stage of the pipeline."""
        return Writer(self.encoder(), self.fmt, self.plan, self.store, epoch)

    def encoder(self) -> ImageEncoder:
        """What makes files of pixels."""
        return ImageEncoder(self.options.codec, self.options.quality, self.provenance, self.names, self.row_settings)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every label."""
        assert self.fmt.class_names is not None, "generated images have them"
        return self.fmt.class_names

    @property
    def provenance(self) -> Provenance:
        """What all files of the job have in common."""
        hashes = self.models.hashes
        weights = hashes["drafter"], hashes["refiner"], hashes["vqvae"]
        seed, draft_steps = self.fmt.seed, self.fmt.draft_steps
        assert seed is not None and draft_steps is not None, "all jobs have them"
        return Provenance(software(), *weights, seed, draft_steps)

    def render(
        self,
        sampling: SamplingConfig,
        job: JobRecord,
        entries: Sequence[ManifestEntry],
        failed: Mapping[int, str],
    ) -> dict[str, bytes]:
        """The closing files of a job, by path. Jobs with the same record render the same bytes."""
        return closing_files(self.store, self.card(sampling, job), job.epoch, entries, failed)

    def card(self, sampling: SamplingConfig, job: JobRecord) -> CardInfo:
        """What the card says besides what is in the manifest."""
        identity = Identity(job.identity)
        decoding = to_dict(sampling) | {"batch": identity.batch, "dtype": identity.dtype, **identity.preparation}
        return CardInfo(
            fmt=self.fmt,
            image_size=self.models.image_size,
            models={ref.role: (self.models.describe(ref), ref.sha256) for ref in self.models.refs},
            sampling=decoding,
            command=full_command(job.info.get("command") or command_line()),
            software=software(),
            tokens=self.options.keep_tokens,
            carried=self.carried,
            row_settings=self.row_settings,
        )


def open_images(
    options: ImageJobOptions,
    store: Store,
    models: ModelSet,
    seed: int,
    draft_steps: int,
    plan: ShardPlan,
    extra: pa.Table | None,
    row_settings: tuple[str, ...] = (),
) -> ImageDataset:
    """Check format and carried columns before anything starts. Raises InputError."""
    assert models.refiner is not None
    fmt = DatasetFormat(options.format, options.codec, models.class_names.names, seed, draft_steps)
    if extra is not None:
        fmt.check_extra(extra.drop_columns(list(row_settings)))
    everywhere = {"seed", "draft_steps"}  # columns of every dataset, whether or not they differ by row
    carried = pa.schema([field for field in extra.schema if field.name not in everywhere] if extra is not None else [])
    return ImageDataset(store, fmt, plan, options, models, carried, row_settings)
