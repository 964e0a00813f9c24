"""The label rows' part of a job's identity, compatible with datasets of older versions."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from tandem.errors import OutputError
from tandem_jobs.labels.labels import LabelRows
from tandem_workers.dataset.identity import Identity, rows_identity
from tandem_workers.dataset.job_record import read_identity
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

HINT = "choose another --out, or replace that job with --overwrite"


def row_identity(rows: LabelRows, store: Store, overwrite: bool) -> dict[str, Any]:
    """The fields for `job.json`: number of rows, their digest, and names and types of carried columns.

    A job begun by an older version with these rows keeps its fields, which have no columns, if its digest is
    unambiguous. Raises OutputError if it is not, or if the columns are now read as other types.
    """
    if rows.extra is None:
        return rows_identity(len(rows), rows.digest)
    there = Identity({}) if overwrite or not store.exists(layout.JOB) else read_identity(store)
    if there.rows != len(rows) or there.columns is not None:
        return rows_identity(len(rows), rows.digest, {field.name: str(field.type) for field in rows.extra.schema})
    digest = old_digest(rows)
    if there.rows_sha256 != digest:
        raise OutputError(
            f"{store.uri} holds another job, or one of an older version, which read these columns as other types",
            HINT,
        )
    if unsure := [field.name for field in rows.extra.schema if pt.is_integer(field.type) or pt.is_floating(field.type)]:
        raise OutputError(
            f"{store.uri} holds a job of an older version, whose digest does not tell 1, 23 from 12, 3: "
            f"the column {unsure[0]!r} may differ",
            HINT,
        )
    return rows_identity(len(rows), digest)


def old_digest(rows: LabelRows) -> str:
    """The digest of older versions: values without their lengths."""
    digest = hashlib.sha256(rows.label.astype("<i4").tobytes())
    table = pa.table(rows.carried(range(len(rows))))
    for name in table.column_names:
        digest.update(f"\n{name} {table[name].type}\n".encode())
        for value in table[name]:
            digest.update(repr(value.as_py()).encode())
    return digest.hexdigest()
