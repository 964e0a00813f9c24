"""Feature files: parquet with `index`, `label`, `features` and the extractor's other columns, a file for each block.

PLACE/features/NAME-HASH8/
  identity.json     what the features are of: extractor, hash, resizer, numbers, pictures; and versions, never compared
  00000.parquet     a block of the source; put once, whole or absent
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.image_folder import FEATURES_SUFFIX
from tandem_workers.dataset.block_files import BlockFiles
from tandem_workers.dataset.claim import as_json
from tandem_workers.dataset.columns import as_array, as_lists
from tandem_workers.features.extractors import Columns, Extractor
from tandem_workers.pictures.picture_block import PictureSource, content_of
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Stored

FOLDER = "features"
Dtype = Literal["float32", "float16"]
SIZES_KEY = b"tandem.sizes"  # in a file's metadata: how many pictures had which size


@dataclass(frozen=True)
class FeatureBlock:
    """Features of the pictures of one block.

    Attributes:
        index, label: int64 [n] and int32 [n].
        columns: float [n, F] for each.
        sizes: how many pictures had which size, such as {"64 x 48": 1000} (width, height).
    """

    index: NDArray[np.int64]
    label: NDArray[np.int32]
    columns: Mapping[str, NDArray[Any]]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class FeatureFiles(BlockFiles):
    """The features of one source by one extractor."""

    holds: ClassVar[str] = "features"
    made_by: ClassVar[str] = "this extractor"
    of_key: ClassVar[bytes] = b"tandem.features"

    dtype: Dtype = "float32"

    def put(self, block: int, features: FeatureBlock) -> Stored:
        """Put a block's file unless it is there. InputError for values that are not finite in their dtype."""
        arrays: dict[str, pa.Array] = {"index": pa.array(features.index), "label": pa.array(features.label)}
        for name, values in features.columns.items():
            with np.errstate(over="ignore"):
                kept = np.ascontiguousarray(values, dtype=self.dtype)
            if not np.isfinite(kept).all():
                raise InputError(f"{name} of block {block}: expected finite {self.dtype} numbers, got others")
            arrays[name] = as_lists(kept)
        return self.put_columns(block, arrays, {SIZES_KEY: json.dumps(dict(features.sizes)).encode()})

    def read(self, block: int, columns: Collection[str] | None = None) -> FeatureBlock:
        """Features of a block: these columns, or all; reads no others.

        OutputError where the file is missing, damaged or not ours.
        """
        with self.opened(block) as file:
            names = [name for name in file.schema_arrow.names if name not in ("index", "label")]
            wanted = names if columns is None else [name for name in names if name in columns]
            table = file.read(["index", "label", *wanted])
            sizes = json.loads(file.schema_arrow.metadata.get(SIZES_KEY, b"{}"))
        values = {name: as_array(table.column(name)) for name in wanted}
        return FeatureBlock(table["index"].to_numpy(), table["label"].to_numpy(), values, sizes)


def place_features(
    source: PictureSource, extractor: Extractor, dtype: Dtype = "float32", place: str | None = None
) -> FeatureFiles:
    """The feature files of these pictures by this extractor: in a place that is given, or beside the pictures.

    Beside: in a dataset of Tandem in its own folder `features`, else in PLACE.features, since a reader of image folders
    would take a folder among them for a class.
    """
    kind = "tandem" in source.kind.lower()
    parent = place or (source.place if kind else source.place.rstrip("/") + FEATURES_SUFFIX)
    folder = f"{FOLDER}/{extractor.folder}" if kind and not place else extractor.folder
    folder += "" if dtype == "float32" else f"-{dtype}"
    identity = as_json({"extractor": extractor.identity, "dtype": dtype, "pictures": content_of(source)})
    return FeatureFiles(open_store(parent), folder, identity, source.num_blocks, dtype)


def merged(parts: list[Columns]) -> Columns:
    """Columns of consecutive batches, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}
