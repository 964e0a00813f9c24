"""`tandem edit`: the job, from pictures and masks to a dataset of edited pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tandem.config import SamplingConfig
from tandem.editing.expand import parse_margins
from tandem.editing.masks import parse_boxes
from tandem.errors import InputError
from tandem.user_files import shown
from tandem_jobs.edits.edit_options import EXAMPLES, EditSpec
from tandem_jobs.edits.edit_rows import edit_rows
from tandem_jobs.generate import PlacedJob, run_job
from tandem_jobs.labels.labels import LabelRows
from tandem_jobs.run.batch_size import Workload
from tandem_jobs.run.image_output import ImageDataset
from tandem_jobs.run.progress import say
from tandem_workers.dataset.card import CardInfo
from tandem_workers.dataset.claim import JobRecord
from tandem_workers.dataset.edit_card import EditCard
from tandem_workers.dataset.formats import DatasetFormat
from tandem_workers.dataset.identity import edit_identity
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.pictures.edit_inputs import match_masks, open_edit_pictures
from tandem_workers.pictures.edit_pictures import EditPictures
from tandem_workers.pictures.picture_block import content_of
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.pictures.read_ahead import count_pictures
from tandem_workers.stages.edit_encoder import BOX, DRAWN_CELLS, PICTURE_INDEX, SOURCE_TOKENS, EditEncoder
from tandem_workers.stages.edit_source_stage import MADE, SourceEncoder
from tandem_workers.stages.ray_data import Stage
from tandem_workers.storage.store import Store

__all__ = ["EXAMPLES", "EditSpec", "run"]

CHECKED_ROWS = 64  # whose pictures are read before anything starts


@dataclass(frozen=True, kw_only=True)
class EditDataset(ImageDataset):
    """A dataset of edited pictures. `pictures`: those that are edited; `put_back`: how."""

    pictures: EditPictures
    put_back: PutBack

    def encoder(self) -> EditEncoder:
        options = self.options
        given = options.codec, options.quality, self.provenance, self.names, self.row_settings
        return EditEncoder(self.pictures, self.put_back, options.keep_tokens, *given)

    def card(self, sampling: SamplingConfig, job: JobRecord) -> CardInfo:
        plain = super().card(sampling, job)
        source, blend = self.pictures.source, self.put_back.blend
        return EditCard(**vars(plain), source=f"`{source.place}` ({source.kind})", fit=self.pictures.fit, blend=blend)


class EditJob(PlacedJob):
    """Pictures with parts drawn anew."""

    def __init__(self, spec: EditSpec) -> None:
        self.edit = spec
        self.pictures, self.masks_identity = open_inputs(spec)
        self.put_back = PutBack(spec.blend, spec.feather)
        super().__init__(spec)

    def read_rows(self) -> tuple[LabelRows, str]:
        self.pictures = replace(self.pictures, side=self.models.image_size)
        self.models = replace(self.models, class_names=self.models.class_names.with_none())
        rows = edit_rows(self.edit, self.pictures.source, len(self.pictures), self.models.class_names)
        check_has_masks(self.edit, rows)
        check_first(self.pictures, rows)
        return rows, f"--labels: {self.edit.labels}"

    def open_dataset(self, store: Store, plan: ShardPlan) -> ImageDataset:
        options, extra = self.edit, self.rows.extra
        assert extra is not None
        if taken := sorted({*MADE, SOURCE_TOKENS, DRAWN_CELLS} & set(extra.column_names)):
            raise InputError(f"--labels: column {taken[0]!r}: this name is the dataset's own", "rename or drop it")
        names = self.models.class_names.names
        fmt = DatasetFormat(options.format, options.codec, names, self.seed, self.draft_steps)
        fmt.check_extra(extra.drop_columns(list(self.row_settings)))
        carried = [field for field in extra.schema if field.name not in ("seed", "draft_steps")]
        made = [pa.field(name, kind) for name, kind in MADE.items()]
        if options.keep_tokens:
            pyramid = self.models.drafter_config.pyramid
            made.append(pa.field(SOURCE_TOKENS, pa.list_(pa.uint16(), pyramid.num_tokens)))
            made.append(pa.field(DRAWN_CELLS, pa.list_(pa.uint8(), -(-(pyramid.grid**2) // 8))))
        schema, settings = pa.schema([*carried, *made]), self.row_settings
        return EditDataset(
            store=store,
            fmt=fmt,
            plan=plan,
            options=options,
            models=self.models,
            carried=schema,
            row_settings=settings,
            pictures=self.pictures,
            put_back=self.put_back,
        )

    def workload(self) -> Workload:
        """The VQVAE encodes on the drafters' devices: as large as its decoder."""
        plain = super().workload()
        return replace(plain, devices=[tuple(dict.fromkeys((*names, "decode"))) for names in plain.devices])

    def before_draft(self) -> list[Stage]:
        return [SourceEncoder(self.pictures, self.models, self.decoding, self.edit.nearest)]

    def identity(self, on_real_gpus: bool) -> dict[str, Any]:
        found = self.pictures
        how = {"fit": found.fit, "blend": self.put_back.blend, "feather": self.put_back.feather}
        given = self.masks_identity, found.boxes, found.margins, how, self.edit.nearest
        return super().identity(on_real_gpus) | edit_identity(content_of(found.source), *given)

    def describe(self) -> list[str]:
        source = self.pictures.source
        return [f"pictures: {len(self.pictures):,} of {source.place} ({source.kind})", *super().describe()]


def open_inputs(spec: EditSpec) -> tuple[EditPictures, dict[str, Any] | None]:
    """The pictures with their masks, and what tells the masks from others. InputError."""
    say("finding pictures")
    source = open_edit_pictures(spec.pictures)
    for note in source.notes:
        say(f"note: {note}")
    found = EditPictures(
        source,
        tuple(count_pictures(source)),
        side=0,  # until the models are known
        fit=spec.chosen_fit,
        boxes=parse_boxes(spec.box) if spec.box else (),
        margins=parse_margins(spec.expand) if spec.expand else None,
    )
    if spec.mask is not None:
        masks = open_edit_pictures(spec.mask)
        if masks.num_blocks != 1 or masks.count(0) != 1:
            hint = "--masks takes one for each picture"
            raise InputError(f"--mask: expected one image, got {shown(spec.mask)}", hint)
        block = masks.read(0)
        if block.encoded is None:
            raise InputError(f"--mask: expected an image file, got {masks.kind}")
        return replace(found, mask_file=(block.names[0], block.encoded[0])), content_of(masks)
    if spec.masks is None:
        return found, None
    masks = match_masks(open_edit_pictures(spec.masks), source)
    counts = tuple(count_pictures(masks))
    if sum(counts) != len(found):
        raise InputError(f"--masks: expected one for each of {len(found)} pictures, got {sum(counts)}")
    return replace(found, masks=masks, mask_counts=counts), content_of(masks)


def check_has_masks(spec: EditSpec, rows: LabelRows) -> None:
    """InputError if nothing says what is drawn anew."""
    from_rows = rows.extra is not None and BOX in rows.extra.column_names
    if not (spec.mask or spec.masks or spec.box or spec.expand or from_rows):
        raise InputError("--labels: expected a column 'box', or --mask, --masks, --box or --expand, got none of them")


def check_first(pictures: EditPictures, rows: LabelRows) -> None:
    """InputError, before anything starts, if one of the first pictures or its mask cannot be used."""
    columns = rows.carried(range(min(len(rows), CHECKED_ROWS)))
    boxes = columns[BOX].to_pylist() if BOX in columns else None
    for _ in pictures.read(columns[PICTURE_INDEX].to_pylist(), boxes):
        pass


def run(spec: EditSpec) -> dict[str, Any]:
    """Make the missing shards of a dataset of edited pictures, and return the summary."""
    return run_job(EditJob(spec))
