"""Pictures, masks and rows of a job that edits, checked before anything starts."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from tandem.editing.expand import parse_margins
from tandem.editing.masks import parse_boxes
from tandem.errors import InputError
from tandem.user_files import shown
from tandem_jobs.edits.edit_options import EditOptions, MovedOptions, PictureOptions
from tandem_jobs.edits.edit_rows import edit_rows
from tandem_jobs.labels.labels import LabelRows
from tandem_jobs.run.progress import say
from tandem_workers.dataset.identity import edit_identity
from tandem_workers.dataset.token_columns import BOX, DRAWN_CELLS, EDITED, PICTURE_INDEX, SOURCE_TOKENS
from tandem_workers.models.model_set import ModelSet
from tandem_workers.pictures.edit_inputs import match_masks, open_edit_pictures
from tandem_workers.pictures.edit_pictures import EditPictures
from tandem_workers.pictures.picture_block import content_of
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.pictures.read_ahead import count_pictures

CHECKED_ROWS = 64  # whose pictures are read before anything starts


@dataclass(frozen=True)
class EditSources:
    """The pictures with their masks. `masks`: what tells the masks from others; None without any."""

    pictures: EditPictures
    masks: dict[str, Any] | None

    def identity(self, nearest: bool, put_back: PutBack | None = None) -> dict[str, Any]:
        """What tells these edits from others: a part of the job's identity."""
        found = self.pictures
        back = None if put_back is None else asdict(put_back)
        inputs = content_of(found.source), self.masks, found.boxes, found.margins
        return edit_identity(*inputs, found.fit, nearest, back)

    @property
    def line(self) -> str:
        source = self.pictures.source
        return f"pictures: {len(self.pictures):,} of {source.place} ({source.kind})"


def open_sources(options: PictureOptions, side: int = 0) -> EditSources:
    """The pictures with their masks. `side`: of the model's images, 0 until the models are known. InputError."""
    say("finding pictures")
    source = open_edit_pictures(options.pictures)
    for note in source.notes:
        say(f"note: {note}")
    found = EditPictures(
        source,
        tuple(count_pictures(source)),
        side,
        fit=options.chosen_fit,
        boxes=parse_boxes(options.box) if options.box else (),
        margins=parse_margins(options.expand) if options.expand else None,
    )
    if options.mask is not None:
        masks = open_edit_pictures(options.mask)
        if masks.num_blocks != 1 or masks.count(0) != 1:
            hint = "--masks takes one for each picture"
            raise InputError(f"--mask: expected one image, got {shown(options.mask)}", hint)
        block = masks.read(0)
        if block.encoded is None:
            raise InputError(f"--mask: expected an image file, got {masks.kind}")
        return EditSources(replace(found, mask_file=(block.names[0], block.encoded[0])), content_of(masks))
    if options.masks is None:
        return EditSources(found, None)
    masks = match_masks(open_edit_pictures(options.masks), source)
    counts = tuple(count_pictures(masks))
    if sum(counts) != len(found):
        raise InputError(f"--masks: expected one for each of {len(found)} pictures, got {sum(counts)}")
    return EditSources(replace(found, masks=masks, mask_counts=counts), content_of(masks))


def open_again(record: Any, moved: MovedOptions, side: int, where: str) -> EditSources:
    """The pictures and masks of an earlier job.

    Args:
        record: `place_record`, from the job's record.
        moved: places that are others now.
        side: of the model's images.
        where: the option that names the job's dataset, for errors.

    Raises InputError if they are not found. Whether they are the same is for `EditPicture.check`.
    """
    try:
        options = PictureOptions.model_validate(dict(record) | moved.moved)
    except (TypeError, ValueError) as error:  # pydantic's are ValueErrors
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it has no places of pictures"
        raise InputError(f"{where}: its pictures: {shown(said)}") from None
    try:
        return open_sources(options, side)
    except InputError as error:
        hint = "--pictures, --mask and --masks say where they are now"
        raise InputError(f"{where}: its pictures: {error}", error.hint or hint) from None


def rows_and_pictures(
    options: EditOptions, sources: EditSources, models: ModelSet
) -> tuple[LabelRows, EditSources, ModelSet]:
    """The rows of a job, the sources for the models' image size, and models that also know the label "none".

    InputError for rows, columns and the first pictures that cannot be used.
    """
    sources = replace(sources, pictures=replace(sources.pictures, side=models.image_size))
    models = replace(models, class_names=models.class_names.with_none())
    pictures = sources.pictures
    rows = edit_rows(options, pictures.source, len(pictures), models.class_names)
    columns = set() if rows.extra is None else set(rows.extra.column_names)
    if taken := sorted({*EDITED, SOURCE_TOKENS, DRAWN_CELLS} & columns):
        raise InputError(f"--labels: column {taken[0]!r}: this name is the dataset's own", "rename or drop it")
    if not (options.mask or options.masks or options.box or options.expand or BOX in columns):
        raise InputError("--labels: expected a column 'box', or --mask, --masks, --box or --expand, got none of them")
    check_first(pictures, rows)
    return rows, sources, models


def check_first(pictures: EditPictures, rows: LabelRows) -> None:
    """InputError, before anything starts, if one of the first pictures or its mask cannot be used."""
    columns = rows.carried(range(min(len(rows), CHECKED_ROWS)))
    boxes = columns[BOX].to_pylist() if BOX in columns else None
    for _ in pictures.read(columns[PICTURE_INDEX].to_pylist(), boxes):
        pass


def made_columns() -> list[pa.Field]:
    """The columns that say what was done, besides those of the rows."""
    return [pa.field(name, kind) for name, kind in EDITED.items()]


def place_record(options: PictureOptions) -> dict[str, Any]:
    """The options for job.json, with places that do not depend on the working folder."""
    record = options.model_dump(include=set(PictureOptions.model_fields) - {"spec"}, exclude_none=True)
    places = {"pictures", "mask", "masks"} & set(record)
    return record | {name: absolute(record[name]) for name in places}


def absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))
