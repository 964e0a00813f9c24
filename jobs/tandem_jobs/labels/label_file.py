"""A label file: which images to make, row by row, and carried columns. The whole file is checked at the start."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tandem.class_names import ClassNames
from tandem.errors import InputError, LabelError
from tandem.user_files import cause_of, check_spelling, is_file, shown
from tandem_jobs.labels.label_tables import READERS, cells
from tandem_jobs.labels.labels import LabelRows, check_label, named_labels
from tandem_jobs.labels.settings_columns import check_job_settings, read_settings
from tandem_workers.dataset.columns import stored
from tandem_workers.dataset.row_settings import ROW_SETTINGS
from tandem_workers.models.fetch import fetch, is_remote
from tandem_workers.storage.layout import MAX_ROWS

LABEL, CLASS_NAME, COUNT = "label", "class_name", "count"
READ_ERRORS = (pa.ArrowException, csv.Error, OSError)
INTERPRETED = (LABEL, CLASS_NAME, COUNT, *ROW_SETTINGS)  # every other column is carried


def read_label_file(address: str, classes: ClassNames) -> LabelRows:
    """Rows of a parquet, CSV or JSON-lines file, local or on S3. Raises LabelError naming file, row and cause."""
    check_spelling(address)
    path = fetch(address) if is_remote(address) else Path(os.path.expanduser(address))
    path = path.absolute()  # Arrow would read a:b as an address
    name = shown(address)
    location = f"--labels: {name}"
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise LabelError(f"--labels: expected a file that ends in {', '.join(READERS)}, got {name}")
    try:
        if not is_file(path):
            raise LabelError(f"--labels: no such file: {name}")
        return collect(reader(path, location), classes, location)
    except READ_ERRORS as error:
        raise LabelError(f"--labels: cannot read {name}: {shown(' '.join(cause_of(error).split()))}") from error


def collect(tables: Iterator[pa.Table], classes: ClassNames, location: str) -> LabelRows:
    """The rows of a job from all parts of a file."""
    labels, counts, carried, settings, rows_before, total = [], [], [], [], 0, 0
    for table in tables:
        check_header(table.column_names, location)
        labels.append(read_labels(table, classes, location, rows_before))
        counts.append(read_counts(table, location, rows_before, total))
        settings.append(read_settings(table, location, rows_before))
        try:
            carried.append(stored(table.select(carried_columns(table.column_names))))
        except InputError as error:
            raise LabelError(f"{location}: {error}", error.hint) from None
        rows_before, total = rows_before + len(table), total + int(counts[-1].sum())
    if total == 0:
        raise LabelError(f"{location}: expected one row or more, got none")
    label, extra = np.concatenate(labels), pa.concat_tables(carried).combine_chunks()
    extra = extra if extra.num_columns else None
    chosen = [part for part in settings if part is not None]
    unfilled = pa.concat_tables(chosen).combine_chunks() if chosen else None
    if COUNT not in table.column_names:
        return LabelRows(label, extra, None, unfilled)
    file_row = np.repeat(np.arange(rows_before, dtype=np.int32), np.concatenate(counts))
    has_columns = extra is not None or unfilled is not None
    return LabelRows(label[file_row], extra, file_row if has_columns else None, unfilled)


def carried_columns(names: Sequence[str]) -> list[str]:
    """The user's own columns, which are carried into the dataset unchanged."""
    return [name for name in names if name not in INTERPRETED]


def check_header(names: Sequence[str], location: str) -> None:
    """LabelError if there is neither a label nor a class name, or if a name looks like a misspelt known one."""
    for name in names:
        wanted = next((known for known in INTERPRETED if plain(known) == plain(name)), None)
        if wanted is not None and wanted not in names:
            raise LabelError(
                f"{location}: column {name!r}: expected {wanted!r}, or a less similar name",
                f"rename it: {wanted!r} if it says how to make the row's images, 'my_{name.strip()}' if it is data",
            )
    check_job_settings(names, location)
    if LABEL not in names and CLASS_NAME not in names:
        raise LabelError(f"{location}: expected a column '{LABEL}' or '{CLASS_NAME}', got {', '.join(names)}")


def plain(name: str) -> str:
    """A column's name without case, spaces, punctuation and plural s, to find near misses."""
    return re.sub(r"[\W_]", "", name.casefold()).removesuffix("s")


def read_labels(table: pa.Table, classes: ClassNames, location: str, rows_before: int) -> np.ndarray:
    """int32 labels from numbers, names, or both, which must agree. `rows_before` rows came before."""
    names = cells(table, CLASS_NAME, location) if CLASS_NAME in table.column_names else []
    if LABEL not in table.column_names:
        return np.fromiter(named_labels(names, classes, location, rows_before), dtype=np.int32, count=len(table))
    labels = []
    for i, value in enumerate(cells(table, LABEL, location)):
        row_location = f"{location}, row {rows_before + i + 1}"
        label = check_label(whole_number(value, LABEL, row_location), classes, row_location)
        if names and names[i] not in (None, "") and not classes.goes_by(label, str(names[i])):
            got = shown(repr(names[i]), 80)
            raise LabelError(f"{row_location}: label {label} is {classes[label]!r}, but class_name is {got}")
        labels.append(label)
    return np.array(labels, dtype=np.int32)


def read_counts(table: pa.Table, location: str, rows_before: int, total: int) -> np.ndarray:
    """int64 images of each row, 1 by default. `total` images came before."""
    if COUNT not in table.column_names:
        return np.ones(len(table), dtype=np.int64)
    counts = []
    for i, value in enumerate(cells(table, COUNT, location)):
        row_location = f"{location}, row {rows_before + i + 1}"
        counts.append(1 if value in (None, "") else whole_number(value, COUNT, row_location))
        total += counts[-1]
        if total > MAX_ROWS:
            raise LabelError(
                f"{row_location}: {COUNT}: expected at most {MAX_ROWS} images in all rows so far, got {total}"
            )
    return np.array(counts, dtype=np.int64)


def whole_number(value: Any, column: str, row_location: str) -> int:
    """A number, or its text. LabelError for anything but a whole number >= 0."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,30}\s*", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise LabelError(f"{row_location}: {column}: expected a whole number >= 0, got {shown(value, 80) or 'nothing'}")
    return value
