"""Columns: lists of numbers, the types in which carried columns are stored, and names and types that are refused.

Columns converted by `stored` can be written in every format and read by pyarrow and Hugging Face `datasets`. Only the
layout changes, never the values: views and dictionaries become plain columns, maps become lists of key and value,
UUIDs become text.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt
from numpy.typing import NDArray

from tandem.errors import InputError

IMAGE_COLUMNS = frozenset({"image", "file_name", "index", "label", "class_name", "seed", "draft_steps", "tokens"})
_PLAIN = (pt.is_null, pt.is_boolean, pt.is_integer, pt.is_floating, pt.is_date, pt.is_time, pt.is_timestamp)
_AS_IS = (*_PLAIN, pt.is_duration, pt.is_string, pt.is_large_string, pt.is_binary, pt.is_large_binary)


def as_lists(values_nF: NDArray[Any]) -> pa.Array:
    """A column of lists of F numbers from an array [n, F]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values_nF).reshape(-1)), values_nF.shape[1])


def as_array(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """The inverse of `as_lists`, for any kind of list. ValueError for lists of several lengths, or none."""
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) > 1 or None in lengths:
        raise ValueError(f"expected lists of one length, got {lengths[:5]}")
    flat = pc.list_flatten(column)
    chunk = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
    values: NDArray[Any] = chunk.to_numpy(zero_copy_only=False)
    return values.reshape(len(column), lengths[0] if lengths else getattr(column.type, "list_size", 0))


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column of `kind` is stored. InputError, without the column's name, if there is none."""
    if pt.is_date64(kind):  # parquet reads it back as date32
        return pa.date32()
    if any(check(kind) for check in _AS_IS):
        return kind
    if pt.is_string_view(kind):
        return pa.string()
    if pt.is_fixed_size_binary(kind) or pt.is_binary_view(kind):
        return pa.binary()
    if pt.is_decimal(kind):
        return kind if kind.bit_width >= 128 else pa.decimal128(kind.precision, kind.scale)
    if pt.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pt.is_map(kind):
        pair = [pa.field("key", stored_type(kind.key_type)), pa.field("value", stored_type(kind.item_type))]
        return pa.list_(pa.struct(pair))
    if pt.is_struct(kind) and kind.num_fields:
        return pa.struct([field.with_type(stored_type(field.type)) for field in kind])
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        item = kind.value_field.with_type(stored_type(kind.value_type))
        if pt.is_fixed_size_list(kind) and kind.list_size:
            return pa.list_(item, kind.list_size)
        return pa.large_list(item) if pt.is_large_list(kind) else pa.list_(item)
    raise InputError("objects without any key" if pt.is_struct(kind) else str(kind))


def is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.uuid"


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The schema in which carried columns are stored. InputError naming a column that no format can hold."""
    return pa.schema([(field.name, _named_type(field)) for field in schema])


def stored(table: pa.Table) -> pa.Table:
    """Carried columns in their stored types, without metadata. InputError naming a column that cannot be converted."""
    schema = stored_schema(table.schema)
    columns = [_converted(table[i], field) for i, field in enumerate(schema)]
    return pa.table(columns, schema=schema) if columns else table.replace_schema_metadata(None)


def check_carried(table: pa.Table, format_name: str) -> None:
    """InputError naming a carried column, in its stored type, that a format cannot hold. Call it before a job starts.

    Columns of drafts have to suit every format: `tandem refine` chooses one, and reads no values before it starts.
    """
    any_format = format_name == "drafts"
    if clash := sorted(IMAGE_COLUMNS.intersection(table.column_names)):
        raise InputError(
            f"columns {', '.join(clash)} of the label file: these names are the dataset's own",
            hint="rename or drop them",
        )
    for field in table.schema:
        problem = None
        if format_name == "webdataset" and _any_part(field, _holds_bytes):
            problem = f"is {field.type}, which JSON cannot hold"
        elif format_name == "folder" and _any_part(field, _names_files):
            problem = "would be read as the path of an image by Hugging Face's imagefolder"
        elif (any_format or format_name in ("webdataset", "folder")) and any(
            map(_exceeds_int64, _leaves(table[field.name]))
        ):
            problem = "has numbers above 2^63 - 1, which Hugging Face's datasets can only read from parquet"
        elif (any_format or format_name == "webdataset") and any(map(_exceeds_calendar, _leaves(table[field.name]))):
            problem = "has times that cannot be written as text: beyond the years 1 to 9999, or of an unknown zone"
        if problem:
            hint = "rename or convert the column"
            raise InputError(
                f"column {field.name!r} {problem}", hint if any_format else f"use --format parquet, or {hint}"
            )
        _check_written(table.schema.empty_table().select([field.name]))


def python_values(column: pa.ChunkedArray) -> list[Any]:
    """Values as Python objects. `datetime.time` has no nanoseconds: times with nanoseconds become ISO 8601 text."""
    if _any_part(pa.field("", column.type), lambda field: field.type == pa.time64("ns")):
        return [_exact(value) for value in column]
    return list(column.to_pylist())


def _exact(value: pa.Scalar) -> Any:
    if not value.is_valid:
        return None
    if isinstance(value, pa.StructScalar):
        return {name: _exact(part) for name, part in value.items()}
    if isinstance(value, pa.ListScalar):
        return [_exact(part) for part in value.values]
    if value.type != pa.time64("ns") or value.value % 1000 == 0:
        return value.as_py()
    return f"{value.as_py().isoformat('microseconds')}{value.value % 1000:03d}"


def _check_written(table: pa.Table) -> None:
    """Write an empty table as parquet and read it back. InputError naming its column if that fails."""
    out = io.BytesIO()
    try:
        pq.write_table(table, out)
        pq.read_table(out)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        field = table.schema.field(0)
        raise InputError(
            f"column {field.name!r} of the label file is {field.type}, which parquet cannot hold: {error}",
            hint="drop or convert it",
        ) from error


def _any_part(field: pa.Field, check: Callable[[pa.Field], bool]) -> bool:
    """Whether a check holds for a column or anything inside it."""
    return check(field) or any(_any_part(field.type.field(i), check) for i in range(field.type.num_fields))


def _holds_bytes(field: pa.Field) -> bool:
    return bool(pt.is_binary(field.type) or pt.is_large_binary(field.type))


def _names_files(field: pa.Field) -> bool:
    """The rule of datasets' folder_based_builder."""
    kind, name = field.type, f"_{field.name}"
    if pt.is_list(kind):
        return name.endswith("_file_names") and _is_text(kind.value_type)
    return name.endswith("_file_name") and _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind))


def _leaves(column: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """The values of a column without lists and objects around them."""
    if pt.is_struct(column.type):
        for part in column.flatten():
            yield from _leaves(part)
    elif column.type.num_fields:
        yield from _leaves(pc.list_flatten(column))
    else:
        yield column


def _exceeds_int64(column: pa.ChunkedArray) -> bool:
    return bool(pt.is_uint64(column.type)) and (pc.max(column).as_py() or 0) >= 2**63


def _exceeds_calendar(column: pa.ChunkedArray) -> bool:
    """Whether the first or last time is outside Python's range, and so cannot be written as text."""
    kind = column.type
    if not pt.is_temporal(kind):
        return False
    try:
        for end in pc.min_max(column.cast(pa.int64()) if pt.is_duration(kind) else column).values():
            end.cast(kind).as_py()
    except (OverflowError, ValueError):  # Arrow's errors of values are ValueErrors
        return True
    return False


def _named_type(field: pa.Field) -> pa.DataType:
    try:
        return pa.string() if is_uuid(field.type) else stored_type(field.type)
    except InputError as error:
        raise InputError(
            f"column {field.name!r} of the label file holds {error}, which a dataset cannot keep",
            hint="drop or convert it",
        ) from None


def _converted(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        if is_uuid(column.type):
            return pa.chunked_array([[value and str(value) for value in column.to_pylist()]], pa.string())
        return column if column.type == field.type else column.cast(field.type)
    except pa.ArrowException as error:
        raise InputError(
            f"column {field.name!r} of the label file: cannot convert {column.type} to {field.type}: {error}",
            hint="drop or convert it",
        ) from error
