"""Label files as Arrow tables: parquet, CSV and JSON lines, some rows at a time.

No types are guessed: parquet keeps its own, CSV values stay text as written, and in JSON a string that looks like a
number or a date stays a string.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from tandem.errors import LabelError
from tandem.user_files import parse_json, repeated, shown
from tandem_workers.storage.layout import MAX_ROWS

MAX_COLUMNS = 1000  # keys of nested objects included: each new key adds a cell to every row
TEXT_ROWS = 1000  # rows of a text file held as Python objects
QUOTE = "put all values of the column in quotation marks to keep them as they are written"
UNFIT = (pa.ArrowException, OverflowError, UnicodeEncodeError)  # raised by Arrow for a value it cannot hold


def read_parquet(path: Path, location: str) -> Iterator[pa.Table]:
    """Row groups of a parquet file, with their types."""
    with pq.ParquetFile(path) as file:
        check_unique(file.schema_arrow.names, location)
        if file.metadata.num_rows > MAX_ROWS:
            raise LabelError(f"{location}: expected at most {MAX_ROWS} rows, got {file.metadata.num_rows}")
        for batch in file.iter_batches():
            yield pa.Table.from_batches([batch])


def read_csv(path: Path, location: str) -> Iterator[pa.Table]:
    """Rows of a CSV file (RFC 4180, commas, a header line) as text. LabelError naming the row."""
    check_text(path, location)
    csv.field_size_limit(sys.maxsize)  # the default is 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file, strict=True) if row)  # an empty line is no row
        header = next(rows, [])
        check_unique(header, location)
        rows_before = 0
        while part := list(islice(rows, TEXT_ROWS)):
            for i, row in enumerate(part):
                if len(row) != len(header):
                    expected = f"expected {len(header)} values, as the header has"
                    raise LabelError(f"{location}, row {rows_before + i + 1}: {expected}, got {len(row)}")
            rows_before += len(part)
            columns = [pa.array(column, pa.string()) for column in zip(*part, strict=True)]
            yield pa.table(columns, names=header)


def read_json_lines(path: Path, location: str) -> Iterator[pa.Table]:
    """Rows of a file with one JSON object a line. The whole file is read before the first table comes: a later line may
    add a key or widen a type. Whole numbers have to fit int64. LabelError naming the row.
    """
    check_text(path, location)
    tables, schema, rows_before = [], pa.schema([]), 0
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        rows = ((number, line) for number, line in enumerate((line for line in file if line.strip()), 1))
        while part := [json_object(line, f"{location}, row {number}") for number, line in islice(rows, TEXT_ROWS)]:
            check_keys(part, schema.names, location)
            try:
                tables.append(as_table(part))
                schema = unify(schema, tables[-1].schema)
            except UNFIT as error:
                explain_misfit(part, schema, location, rows_before, error)
            rows_before += len(part)
    yield from (widened(table, schema, location) for table in tables)


READERS: Mapping[str, Callable[[Path, str], Iterator[pa.Table]]] = {
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
}


def cells(table: pa.Table, name: str, location: str) -> list[Any]:
    """The values of a column as Python objects. LabelError for dates and times outside Python's range."""
    try:
        return list(table[name].to_pylist())
    except (OverflowError, ValueError) as error:
        raise LabelError(f"{location}: {name}: cannot read values of type {table[name].type}: {error}") from None


def check_text(path: Path, location: str) -> None:
    """LabelError unless a file is UTF-8, with or without a byte order mark."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    hint = "save the file as UTF-8"
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                byte = error.object[error.start]
                raise LabelError(f"{location}, line {line}: not UTF-8 (byte 0x{byte:02x})", hint) from None
            if (at := chunk.find(b"\0")) >= 0:  # ASCII characters in UTF-16
                raise LabelError(f"{location}, line {line + chunk[:at].count(10)}: not UTF-8 text (a zero byte)", hint)
            line += chunk.count(b"\n")
    if decoder.getstate()[0]:
        raise LabelError(f"{location}, line {line}: not UTF-8 (the last character is cut)", hint)


def check_unique(names: Sequence[str], location: str) -> None:
    """LabelError for a header with a repeated name or too many names."""
    if twice := repeated(names):
        raise LabelError(f"{location}: expected every column once, got {twice} twice or more")
    if len(names) > MAX_COLUMNS:
        raise LabelError(f"{location}: expected at most {MAX_COLUMNS} columns, got {len(names)}")


def json_object(line: str, location: str) -> dict[str, Any]:
    """One line as an object. LabelError for anything else."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise LabelError(f"{location}: {error}") from None
    if not isinstance(row, dict):
        raise LabelError(
            f'{location}: expected an object on each line, such as {{"label": 0}}, got {line.strip()[:60]}'
        )
    return row


def check_keys(rows: Sequence[Mapping[str, Any]], known: Sequence[str], location: str) -> None:
    """LabelError if the objects, nested ones included, have more than MAX_COLUMNS different keys."""
    found: set[tuple[str, ...]] = {(name,) for name in known}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), row) for row in rows]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            found.update((*path, name) for name in value)
            waiting += [((*path, name), inner) for name, inner in value.items() if isinstance(inner, dict | list)]
        else:
            waiting += [(path, inner) for inner in value if isinstance(inner, dict | list)]
        if len(found) > MAX_COLUMNS:
            raise LabelError(f"{location}: expected at most {MAX_COLUMNS} different keys in all rows, got more")


def as_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table with a column for every key, in order of first appearance; null where a row lacks it."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        columns[name] = pa.array(values)
        check_truth_values(values, columns[name].type)
    return pa.table(columns)


def check_truth_values(values: Sequence[Any], kind: pa.DataType) -> None:
    """pa.ArrowInvalid for booleans among fractions, which Arrow would turn into 1.0 and 0.0."""
    there = [value for value in values if value is not None]
    if pt.is_floating(kind) and any(isinstance(value, bool) for value in there):
        raise pa.ArrowInvalid("a truth value among fractions")
    if pt.is_list(kind):
        check_truth_values([item for value in there for item in value], kind.value_type)
    elif pt.is_struct(kind):
        for field in kind:
            check_truth_values([value.get(field.name) for value in there], field.type)


def unify(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """The union of both: whole numbers and fractions become float64, objects have the keys of both."""
    return pa.unify_schemas([schema, other], promote_options="permissive")


def explain_misfit(
    rows: Sequence[Mapping[str, Any]], schema: pa.Schema, location: str, rows_before: int, error: Exception
) -> None:
    """Raises LabelError naming the first row with a value that does not fit those before it."""
    fields = {field.name: pa.schema([field]) for field in schema}
    for i, row in enumerate(rows):
        for name, value in row.items():
            try:
                fields[name] = unify(fields.get(name, pa.schema([])), as_table([{name: value}]).schema)
            except UNFIT as misfit:
                expected = "text of valid characters, and values of one type"
                if isinstance(misfit, OverflowError):
                    expected = "whole numbers from -2^63 to 2^63 - 1"
                elif name in fields:
                    expected = f"{shown(fields[name].field(name).type)}, as in the rows before"
                at = f"{location}, row {rows_before + i + 1}: {shown(name, 60)}"
                raise LabelError(f"{at}: expected {expected}, got {json.dumps(value)[:60]}", QUOTE) from None
    raise LabelError(f"{location}, rows {rows_before + 1} to {rows_before + len(rows)}: {error}") from error


def widened(table: pa.Table, schema: pa.Schema, location: str) -> pa.Table:
    """A part of a file with the columns of the whole file."""
    empty = schema.empty_table()
    columns = {}
    for name in schema.names:
        part = table.select([name]) if name in table.column_names else pa.table({name: pa.nulls(len(table))})
        try:
            columns[name] = pa.concat_tables([empty.select([name]), part], promote_options="permissive")[name]
        except UNFIT as error:
            raise LabelError(f"{location}: {name}: whole numbers among fractions have to be exact: {error}") from error
    return pa.table(columns)
