"""Carried columns: the types in which they are stored, and the names and types that are refused.

What is left after `stored` can be written by every format and read by pyarrow and Hugging Face `datasets`. Values
never change, only how they are laid out: views and dictionaries become plain columns, maps lists of key and value,
UUIDs text.
"""

from __future__ import annotations

import io
from collections.abc import Collection

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from tandem.errors import InputError

IMAGE_COLUMNS = frozenset({"image", "file_name", "index", "label", "class_name", "seed", "draft_steps", "tokens"})
_PLAIN = (pt.is_null, pt.is_boolean, pt.is_integer, pt.is_floating, pt.is_date, pt.is_time, pt.is_timestamp)
_AS_IS = (*_PLAIN, pt.is_duration, pt.is_string, pt.is_large_string, pt.is_binary, pt.is_large_binary)


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column of `kind` is stored. InputError, without the column's name, where there is none."""
    if any(check(kind) for check in _AS_IS):
        return kind
    if is_uuid(kind) or pt.is_string_view(kind):
        return pa.string()
    if pt.is_fixed_size_binary(kind) or pt.is_binary_view(kind):
        return pa.binary()
    if pt.is_decimal(kind):
        return kind if kind.bit_width >= 128 else pa.decimal128(kind.precision, kind.scale)
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return stored_type(kind.value_type)
    if pt.is_map(kind):
        pair = [pa.field("key", stored_type(kind.key_type)), pa.field("value", stored_type(kind.item_type))]
        return pa.list_(pa.struct(pair))
    if pt.is_struct(kind) and kind.num_fields:
        return pa.struct([field.with_type(stored_type(field.type)) for field in kind])
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        item = kind.value_field.with_type(stored_type(kind.value_type))
        if pt.is_fixed_size_list(kind):
            return pa.list_(item, kind.list_size)
        return pa.list_(item) if pt.is_list(kind) else pa.large_list(item)
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


def check_names(names: Collection[str], taken: Collection[str]) -> None:
    """InputError for carried columns that a dataset has itself."""
    if clash := sorted(set(names) & set(taken)):
        raise InputError(
            f"columns {', '.join(clash)} of the label file: these names are the dataset's own",
            hint="rename or drop them",
        )


def check_written(table: pa.Table) -> None:
    """InputError naming the columns of an empty table that parquet cannot hold: writes it and reads it back."""
    for name in table.column_names:
        out = io.BytesIO()
        try:
            pq.write_table(table.select([name]), out)
            pq.read_table(out)
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            kind = table.schema.field(name).type
            raise InputError(
                f"column {name!r} of the label file is {kind}, which parquet cannot hold: {error}",
                hint="drop or convert it",
            ) from error


def _named_type(field: pa.Field) -> pa.DataType:
    try:
        return stored_type(field.type)
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
    except (pa.ArrowException, NotImplementedError) as error:
        raise InputError(
            f"column {field.name!r} of the label file: cannot convert {column.type} to {field.type}: {error}",
            hint="drop or convert it",
        ) from error
