"""Rows of `tandem edit`: an image each, of a picture and as a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from tandem.class_names import ClassNames
from tandem.editing.masks import parse_boxes
from tandem.errors import InputError, LabelError
from tandem.user_files import shown
from tandem_jobs.edits.edit_options import EditOptions
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.labels.labels import LabelRows, choose_classes, find_class
from tandem_workers.dataset.token_columns import BOX, PICTURE_INDEX
from tandem_workers.pictures.picture_block import NO_LABEL, PictureSource
from tandem_workers.pictures.picture_folder import PictureFolder
from tandem_workers.storage.layout import MAX_ROWS

PICTURE = "picture"  # of a label file: number or path
OWN, ALL = "own", "all"


def edit_rows(spec: EditOptions, source: PictureSource, num_pictures: int, classes: ClassNames) -> LabelRows:
    """The rows of a job.

    Args:
        spec: the options.
        source: the pictures.
        num_pictures: how many they are.
        classes: with "none" behind them.

    Raises LabelError for classes, pictures or boxes that do not exist.
    """
    if spec.labels is not None:
        rows = read_label_file(spec.labels, classes)
        return of_file(rows, f"--labels: {shown(spec.labels)}", source, num_pictures)
    assert spec.label is not None  # checked by the options
    if spec.label.strip() == OWN:
        label_PC = own_labels(source, classes)[:, None]
    else:
        text = f"0-{len(classes) - 2}" if spec.label.strip() == ALL else spec.label
        chosen = np.array(choose_classes(text, classes, "--label"), np.int32)
        label_PC = np.broadcast_to(chosen, (num_pictures, len(chosen)))
    total = label_PC.size * spec.n
    if total > MAX_ROWS:
        raise LabelError(f"--n: expected at most {MAX_ROWS} images in all, got {total}")
    label = np.repeat(label_PC, spec.n, axis=1).reshape(-1)
    numbers = np.arange(num_pictures, dtype=np.int32)
    extra = pa.table({PICTURE_INDEX: pa.array(numbers, pa.int64())})
    return LabelRows(label, extra, np.repeat(numbers, label_PC.shape[1] * spec.n))


def own_labels(source: PictureSource, classes: ClassNames) -> np.ndarray:
    """The label of each picture's class folder, by its name: int32 [P]. LabelError for another kind of source."""
    if not isinstance(source, PictureFolder) or source.class_names is None:
        raise LabelError(f"--label own: expected class folders of images, {source.place} is {source.kind}")
    known = [find_class(name, classes, f"--label own: {source.place}") for name in source.class_names]
    return np.array([known[label] for _, label in source.files if label != NO_LABEL], np.int32)


def of_file(rows: LabelRows, location: str, source: PictureSource, num_pictures: int) -> LabelRows:
    """The rows of a label file, with numbers in place of pictures' paths. LabelError naming a wrong row."""
    extra = pa.table({}) if rows.extra is None else rows.extra
    file_rows = len(rows) if rows.file_row is None else int(rows.file_row[-1]) + 1
    if taken := {PICTURE_INDEX} & set(extra.column_names):
        raise LabelError(f"{location}: column {taken.pop()!r}: this name is the dataset's own", "rename or drop it")
    if PICTURE in extra.column_names:
        numbers = picture_numbers(extra[PICTURE].to_pylist(), location, source, num_pictures)
        extra = extra.drop_columns([PICTURE])
    elif num_pictures == 1:
        numbers = [0] * file_rows
    elif num_pictures == file_rows:
        numbers = list(range(num_pictures))
    else:
        raise LabelError(
            f"{location}: expected a column '{PICTURE}', or a row for each of the {num_pictures} pictures, got "
            f"{file_rows} rows"
        )
    if BOX in extra.column_names:
        texts = checked_boxes(extra[BOX].to_pylist(), location)
        extra = extra.set_column(extra.column_names.index(BOX), BOX, pa.array(texts, pa.string()))
    extra = extra.append_column(PICTURE_INDEX, pa.array(numbers, pa.int64()))
    return replace(rows, extra=extra)


def picture_numbers(values: Sequence[Any], location: str, source: PictureSource, num_pictures: int) -> list[int]:
    """The number of each row's picture, given as a number or a path."""
    paths = {path: number for number, (path, _) in enumerate(source.files)} if isinstance(source, PictureFolder) else {}
    numbers = []
    for row, value in enumerate(values, 1):
        number = paths.get(str(value).strip())
        if number is None and str(value).strip().isdecimal():
            number = int(str(value))
        if number is None or number >= num_pictures:
            known = " or a path below it" if paths else ""
            raise LabelError(
                f"{location}, row {row}: {PICTURE}: expected a number from 0 to {num_pictures - 1} of {source.place}"
                f"{known}, got {shown(repr(value), 80)}"
            )
        numbers.append(number)
    return numbers


def checked_boxes(values: Sequence[Any], location: str) -> list[str | None]:
    """The boxes of each row; None where there are none."""
    texts = [str(value).strip() or None if value is not None else None for value in values]
    for row, text in enumerate(texts, 1):
        try:
            _ = text is None or parse_boxes(text)
        except InputError as error:
            raise LabelError(f"{location}, row {row}: {error}") from None
    return texts
