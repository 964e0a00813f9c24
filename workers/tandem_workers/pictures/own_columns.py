"""The columns beside image and label in one file of a dataset of Tandem, in the types in which they were stored.

A tar holds them as JSON, whose types come from the job's record. Columns of a type that the record lacks, or that JSON
cannot give back, are left out.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tandem.errors import InputError
from tandem.user_files import shown
from tandem_workers.dataset.columns import as_lists
from tandem_workers.dataset.identity import Identity
from tandem_workers.dataset.token_columns import EDIT_COLUMNS, TOKENS

INDEX = "index"
KNOWN = frozenset({"image", "file_name", "label", "class_name"})  # pictures have them otherwise
GENERATED = {"seed": pa.int64(), "draft_steps": pa.int32()}  # of every row of `tandem generate`
LIST = re.compile(r"(large_|fixed_size_|)list<\w+(?: not null)?: (.+)>(?:\[(\d+)\])?")


def column_types(identity: Identity) -> dict[str, pa.DataType]:
    """The types of columns by name, as far as the record of a job tells them."""
    known = {name: type_of(text) for name, text in (identity.columns or {}).items()}
    made = GENERATED | EDIT_COLUMNS if identity.edits else GENERATED
    return made | {name: kind for name, kind in known.items() if kind is not None}


def type_of(text: str) -> pa.DataType | None:
    """The type with this name; None for one that has no values in JSON alone, such as an object."""
    if match := LIST.fullmatch(text):
        inner = type_of(match[2])
        if inner is None:
            return None
        if match[1] == "large_":
            return pa.large_list(inner)
        return pa.list_(inner, int(match[3] or -1))
    try:
        return pa.type_for_alias(text)
    except ValueError:
        return None


def read_columns(path: str, data: bytes, types: Mapping[str, pa.DataType]) -> tuple[pa.Table | None, list[str]]:
    """`index` and the other columns in one file, and the names of those left out; None for an image file.

    Damaged bytes make readers raise errors of many kinds.
    """
    if path.startswith("images/"):
        return None, []
    if path.endswith(".tar"):
        return columns_of_tar(data, types)
    file = pq.ParquetFile(io.BytesIO(data))
    names = [name for name in file.schema_arrow.names if name not in KNOWN]
    return file.read(names).replace_schema_metadata(None), []


def columns_of_tar(data: bytes, types: Mapping[str, pa.DataType]) -> tuple[pa.Table, list[str]]:
    rows, tokens = list[dict[str, Any]](), list[Any]()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            if member.name.endswith(".json"):
                rows.append(json.loads(content(tar, member)))
            elif member.name.endswith(f".{TOKENS}.npy"):
                tokens.append(np.load(io.BytesIO(content(tar, member)), allow_pickle=False))
    names = [name for name in rows[0] if name not in KNOWN]
    all_types = {INDEX: pa.int64(), **types}
    columns = {name: typed(name, [row[name] for row in rows], all_types[name]) for name in names if name in all_types}
    if tokens:
        columns[TOKENS] = as_lists(np.stack(tokens))
    return pa.table(columns), [name for name in names if name not in all_types]


def typed(name: str, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values of JSON in a type; times and dates come from text. InputError."""
    try:
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, TypeError):
            return pa.array(values).cast(kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"column {name!r}: expected values of {kind}, got others: {shown(error)}") from None


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"expected a file, found {member.name} of type {member.type!r}")
    return file.read()
