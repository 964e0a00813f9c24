"""Columns of a label file that are settings of the row: guidance, top_k, top_p, temperatures, draft_steps and seed.

An empty cell means the job's own value. Values are checked like flags. Columns named after a setting of the whole job
are refused: in a dataset they would seem to say how its images were made. All other columns are data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from tandem.config import CONSTANT, MAX_STRENGTH, MIN_TEMPERATURE, SCHEDULES, Pyramid, SamplingConfig, check_alone
from tandem.errors import InputError, LabelError
from tandem.user_files import shown
from tandem_jobs.labels.label_tables import cells
from tandem_jobs.labels.labels import LabelRows
from tandem_jobs.options.options import DecodingOptions, RowOptions
from tandem_workers.dataset.row_settings import GUIDANCE_SETTINGS, ROW_SETTINGS, SAMPLING_SETTINGS, SEED_INDEX

MAX_VALUES = {"top_k": 2**31 - 1, "draft_steps": 2**31 - 1, "seed": 2**63 - 1}
TYPES = {
    "cfg": pa.float64(),
    "cfg_schedule": pa.string(),
    "refiner_cfg": pa.float64(),
    "top_k": pa.int64(),
    "top_p": pa.float64(),
    "temperatures": pa.list_(pa.float64()),
    "draft_steps": pa.int32(),
    "seed": pa.int64(),
}
EXPECTED = {
    "cfg": f"a number from 0 to {MAX_STRENGTH:g}",
    "cfg_schedule": SCHEDULES,
    "refiner_cfg": f"a number from 0 to {MAX_STRENGTH:g}",
    "top_k": f"a whole number from 0 (all codes) to {MAX_VALUES['top_k']}",
    "top_p": "a number from 0 to 1",
    "temperatures": f"numbers >= {MIN_TEMPERATURE}, one a scale, such as 1.1,1.0",
    "draft_steps": "a whole number",
    "seed": f"a whole number from 0 to {MAX_VALUES['seed']}",
}
# Settings of the whole job that change what an image is or how it is stored
JOB_SETTINGS = (
    *("drafter", "refiner", "vqvae", "random_weights", "batch", "dtype", "threads", "fold_adaln", "int8", "fp8"),
    *("kernels", "format", "codec", "quality", "keep_tokens", "shard_size", SEED_INDEX),
)


def field_check(name: str) -> TypeAdapter[Any]:
    """The validator of the flag with this name."""
    field = (RowOptions if name == "seed" else DecodingOptions).model_fields[name]
    checked: Any = Annotated[field.annotation, field]
    return TypeAdapter(checked)


CHECKS = {name: field_check(name) for name in ROW_SETTINGS}


def check_job_settings(names: Sequence[str], location: str) -> None:
    """LabelError for a column that has the name of a setting of the whole job."""
    for name in names:
        if name.casefold() in JOB_SETTINGS:
            flag = f"it is --{name.casefold().replace('_', '-')} for all rows, "
            raise LabelError(
                f"{location}: column {name!r}: expected another name: this one would seem to say how images were made",
                f"{'' if name.casefold() == SEED_INDEX else flag}rename the column if it is data",
            )


def read_settings(table: pa.Table, location: str, rows_before: int) -> pa.Table | None:
    """The typed settings columns of a part of a label file; null: the job's own value. None if there are no such
    columns. `rows_before` rows came before. LabelError naming row, column and value."""
    columns = {}
    for name in (name for name in ROW_SETTINGS if name in table.column_names):
        values, known = [], {}
        for i, cell in enumerate(cells(table, name, location)):
            key = repr(cell)
            if key not in known:
                known[key] = read_cell(name, cell, f"{location}, row {rows_before + i + 1}")
            values.append(known[key])
        columns[name] = pa.array(values, TYPES[name])
    return pa.table(columns) if columns else None


def read_cell(name: str, cell: Any, row_location: str) -> Any:
    """One value, or None for an empty cell. CSV cells are text; typed files hold numbers and lists."""
    value = cell.strip() if isinstance(cell, str) else cell
    if value is None or value == "":
        return None
    if name == "temperatures" and not isinstance(value, list):
        value = value.split(",") if isinstance(value, str) else [value]
    if name == "cfg_schedule" and isinstance(value, str):
        value = value.replace(" ", "")
    try:
        if any(isinstance(part, bool) for part in (value if isinstance(value, list) else [value])):
            raise ValueError("a truth value")
        checked = CHECKS[name].validate_python(value)
        if name in SAMPLING_SETTINGS:
            SamplingConfig(**{name: checked})
        if name in MAX_VALUES and checked > MAX_VALUES[name]:
            raise ValueError("too large")
        return checked
    except (ValueError, InputError):  # pydantic's errors are ValueErrors
        raise LabelError(f"{row_location}: {name}: expected {EXPECTED[name]}, got {shown(repr(cell), 80)}") from None


def fill_settings(
    rows: LabelRows, sampling: SamplingConfig, draft_steps: int, seed: int, pyramid: Pyramid, location: str
) -> LabelRows:
    """Fill the empty cells of settings columns with the job's own values.

    The rows must have unfilled settings. LabelError for draft steps that the pyramid does not have.
    """
    unfilled = rows.unfilled_settings
    assert unfilled is not None
    check_guidance(unfilled, sampling, location)
    own: Mapping[str, Any] = {**vars(sampling), "draft_steps": draft_steps, "seed": seed}
    columns: dict[str, pa.ChunkedArray] = {}
    for name in unfilled.column_names:
        values = [own[name] if value is None else value for value in unfilled[name].to_pylist()]
        if name == "refiner_cfg" and own[name] is None:  # then it is the row's cfg
            same = columns["cfg"].to_pylist() if "cfg" in columns else [sampling.cfg] * len(values)
            values = [cfg if value is None else value for value, cfg in zip(values, same, strict=True)]
        columns[name] = pa.chunked_array([pa.array(values, TYPES[name])])
    if "draft_steps" in columns:
        check_each(columns["draft_steps"], pyramid.check_draft_steps, location)
    if "cfg_schedule" in columns:
        scales = pyramid.num_scales
        check_each(columns["cfg_schedule"], lambda text: SamplingConfig(cfg_schedule=text).strengths(scales), location)
    carried = {} if rows.extra is None else {name: rows.extra[name] for name in rows.extra.column_names}
    names = tuple(columns)
    if "seed" in columns:
        columns[SEED_INDEX] = first_seed_index(unfilled["seed"], rows.file_row)
    return replace(rows, extra=pa.table({**columns, **carried}), unfilled_settings=None, row_settings=names)


def check_guidance(unfilled: pa.Table, sampling: SamplingConfig, location: str) -> None:
    """LabelError for the first row with a strength of its own beside strengths of all scales, its own or the job's."""
    rows = unfilled.select([name for name in GUIDANCE_SETTINGS if name in unfilled.column_names])
    known = set()
    for number, row in enumerate(rows.to_pylist(), 1):
        if (key := tuple(row.values())) not in known:
            known.add(key)
            given = [name for name, value in row.items() if value is not None]
            try:
                check_alone(row.get("cfg_schedule") or sampling.cfg_schedule, given)
            except InputError as error:
                raise LabelError(f"{location}, row {number}: {error}") from None


def first_seed_index(seeds: pa.ChunkedArray, file_row: np.ndarray | None) -> pa.ChunkedArray:
    """`seed_index` of the first image of each row: 0 if the row has its own seed, else the image's index in the job."""
    file_rows = np.arange(len(seeds), dtype=np.int32)
    first = file_rows if file_row is None else np.searchsorted(file_row, file_rows)
    return pa.chunked_array([pa.array(np.where(seeds.is_valid().to_numpy(), 0, first), pa.int64())])


def check_each(column: pa.ChunkedArray, check: Callable[[Any], object], location: str) -> None:
    """LabelError for the first value, row by row, that the models' pyramid does not take."""
    for value in column.unique().to_pylist():
        try:
            check(value)
        except InputError as error:
            raise LabelError(f"{location}, row {pc.index(column, value).as_py() + 1}: {error}") from None


def most_demanding(sampling: SamplingConfig, row_settings: tuple[str, ...]) -> SamplingConfig:
    """The row settings that need the most memory: guidance, and sorting all codes."""
    guided = replace(sampling, cfg=max(sampling.cfg, 1.0), cfg_schedule=CONSTANT, refiner_cfg=None)
    if "cfg_schedule" in row_settings:  # a row may have a strength for each scale
        sampling = guided
    worst: dict[str, Any] = {
        "cfg": guided.cfg,
        "refiner_cfg": max(sampling.refiner_cfg or 0, 1.0),
        "top_k": 0,
        "top_p": 0.5,
    }
    return replace(sampling, **{name: value for name, value in worst.items() if name in row_settings})
