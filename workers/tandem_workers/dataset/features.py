"""Hugging Face features of webdataset samples, for the dataset card.

Without them `datasets` infers the types from the first samples of the first tar, where a column may still be null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

GENERATED = {"class_name": "string", "seed": "int64", "draft_steps": "int64"}  # columns of every generated image
_FLOATS = {16: "float16", 32: "float32", 64: "float64"}


def sample_features(
    extension: str, carried: pa.Schema, tokens: bool, own: Mapping[str, str] = GENERATED
) -> list[dict[str, Any]]:
    """The members of a sample as the `features` of a card's YAML.

    `carried` has stored types (`dataset.columns`); `own` are the columns between the label and the carried ones.
    """
    columns = [
        *({"name": name, "dtype": "int64"} for name in ("index", "label")),
        *({"name": name, "dtype": dtype} for name, dtype in own.items()),
        *({"name": field.name, **json_feature(field.type)} for field in carried),
    ]
    return [
        {"name": extension, "dtype": "image"},
        {"name": "cls", "dtype": "int64"},
        {"name": "json", "struct": columns},
        *([{"name": "tokens.npy", "list": "uint16"}] if tokens else []),
        *({"name": name, "dtype": "string"} for name in ("__key__", "__url__")),
    ]


def json_feature(kind: pa.DataType) -> dict[str, Any]:
    """The feature of a carried column as JSON holds it: dates, times and decimals as text."""
    if pt.is_struct(kind):
        return {"struct": [{"name": field.name, **json_feature(field.type)} for field in kind]}
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        item = json_feature(kind.value_type)
        return {"list": item.get("dtype") or item.get("struct") or item}
    if pt.is_floating(kind):
        return {"dtype": _FLOATS[kind.bit_width]}
    as_is = pt.is_null(kind) or pt.is_boolean(kind) or pt.is_integer(kind)
    return {"dtype": str(kind) if as_is else "string"}
