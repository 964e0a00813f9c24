"""A digest of columns by value: equal columns have the same digest, whatever their chunks, offsets and buffers.

Arrow's own buffers cannot be hashed: bytes under nulls, unused bits and slice offsets differ between equal columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt


class Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def update_schema(digest: Hash, schema: pa.Schema) -> None:
    """Hash number, names and types of columns, each text preceded by its length."""
    digest.update(len(schema).to_bytes(8, "little"))
    for field in schema:
        for text in (field.name.encode(), str(field.type).encode()):
            digest.update(len(text).to_bytes(8, "little") + text)


def update_columns(digest: Hash, columns: Iterable[pa.Array]) -> None:
    """Hash the values of columns of equal length, in their stored types (`dataset.columns`)."""
    for column in columns:
        update_values(digest, column)


def update_values(digest: Hash, array: pa.Array) -> None:
    """Hash which values are null, then the other values: their lengths if these vary, and their bytes."""
    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    array, kind = array.drop_null(), array.type
    if pt.is_struct(kind):
        update_columns(digest, array.flatten())
    elif pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        digest.update(pc.list_value_length(array).cast(pa.int64()).to_numpy().tobytes())
        update_values(digest, array.flatten())
    elif pt.is_string(kind) or pt.is_large_string(kind) or pt.is_binary(kind) or pt.is_large_binary(kind):
        array = array.cast(pa.large_string() if "string" in str(kind) else pa.large_binary()).cast(pa.large_binary())
        digest.update(pc.binary_length(array).to_numpy().tobytes())
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        if len(array) and ends[-1] > ends[0]:
            digest.update(memoryview(data)[ends[0] : ends[-1]])
    elif not pt.is_null(kind):
        array = array.cast(pa.uint8()) if pt.is_boolean(kind) else array
        size = array.type.bit_width // 8
        if len(array):
            digest.update(memoryview(array.buffers()[1])[array.offset * size : (array.offset + len(array)) * size])
