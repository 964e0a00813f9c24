"""Token maps of the pictures of one block, and the file that keeps them.

Columns: `index` int64, `label` int32, `group` int64, and `ids`, uint16: the views of a picture one after the other,
each with the token ids of all scales, small to large.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tandem_workers.dataset.block_files import BlockFiles
from tandem_workers.dataset.columns import as_array, as_lists
from tandem_workers.storage.store import Stored

SUMMARY_KEY = b"tandem.summary"  # in a file's metadata
MAX_IDS = 2**16  # of a codebook, as ids have 16 bits


@dataclass(frozen=True)
class Skipped:
    """A picture that was left out, and why."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class TokenBlock:
    """Token maps of n pictures, in the order of their index.

    Attributes:
        index: int64 [n], see `PictureBlock.index`.
        label: int32 [n].
        ids: uint16 [n, views, L].
        group: int64 [n]; pictures of a class with equal numbers are variants of one picture.
        skipped: pictures of the block that are not among the n.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int32]
    ids: NDArray[np.uint16]
    group: NDArray[np.int64]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sha256(self) -> str:
        """Of index, labels and ids, in hex. Not of the groups, which are numbers of names, and so of places too."""
        digest = hashlib.sha256()
        for values in (self.index, self.label, self.ids):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class BlockSummary:
    """What the metadata of a block's file says.

    `sha256`: see `TokenBlock.sha256`. `labels`: how many pictures have which label.
    """

    rows: int
    sha256: str
    labels: Mapping[int, int]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class TokenBlocks(BlockFiles):
    """The blocks of one token set."""

    holds: ClassVar[str] = "tokens"
    made_by: ClassVar[str] = "this VQVAE"
    of_key: ClassVar[bytes] = b"tandem.tokens"

    views: int

    def put(self, block: int, tokens: TokenBlock) -> Stored:
        """Put a block's file unless it is there."""
        labels = Counter(tokens.label.tolist())
        summary: dict[str, Any] = {
            "rows": len(tokens),
            "sha256": tokens.sha256,
            "labels": {str(label): count for label, count in sorted(labels.items())},
            "skipped": [asdict(picture) for picture in tokens.skipped],
        }
        columns = {
            "index": pa.array(tokens.index),
            "label": pa.array(tokens.label),
            "group": pa.array(tokens.group),
            "ids": as_lists(tokens.ids.reshape(len(tokens), int(np.prod(tokens.ids.shape[1:])))),
        }
        return self.put_columns(block, columns, {SUMMARY_KEY: json.dumps(summary).encode()})

    def summary(self, block: int) -> BlockSummary:
        """What a block's file says of itself; reads its footer alone. OutputError as `opened`."""
        with self.opened(block) as file:
            return summary_of(file.schema_arrow)

    def read(self, block: int) -> TokenBlock:
        """A block. OutputError where its file is missing, damaged or not ours."""
        with self.opened(block) as file:
            summary, table = summary_of(file.schema_arrow), file.read(["index", "label", "group", "ids"])
            ids = as_array(table["ids"])
            ids = ids.reshape(len(ids), self.views, ids.shape[1] // self.views)
            index, label, group = (table[name].to_numpy() for name in ("index", "label", "group"))
            found = TokenBlock(index, label, ids, group, summary.skipped)
            if found.sha256 != summary.sha256:
                raise ValueError("its values have another sha256")
        return found


def summary_of(schema: pa.Schema) -> BlockSummary:
    """The summary in the metadata of a file. ValueError."""
    try:
        values = json.loads(schema.metadata[SUMMARY_KEY])
        labels = {int(label): int(count) for label, count in values["labels"].items()}
        skipped = tuple(Skipped(**picture) for picture in values["skipped"])
        return BlockSummary(int(values["rows"]), str(values["sha256"]), labels, skipped)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its summary lacks {error}") from None
