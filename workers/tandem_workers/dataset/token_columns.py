"""Columns that hold token ids, and the columns of edits."""

from __future__ import annotations

import pyarrow as pa

TOKENS = "tokens"
# Of edits: the picture's number, boxes of the row's own, the picture's ids, and a bit for each latent cell, which is 1
# where it is drawn anew
PICTURE_INDEX, BOX, SOURCE_TOKENS, DRAWN_CELLS = "picture_index", "box", "source_tokens", "drawn_cells"
EDITED = {  # columns that say what was done
    "picture": pa.string(),
    "picture_sha256": pa.string(),
    "mask_sha256": pa.string(),
    "edited_share": pa.float64(),
}
EDIT_COLUMNS = {
    PICTURE_INDEX: pa.int64(),
    BOX: pa.string(),
    **EDITED,
    SOURCE_TOKENS: pa.list_(pa.uint16()),
    DRAWN_CELLS: pa.list_(pa.uint8()),
}


def cell_bytes(grid: int) -> int:
    """Bytes of the cells of an edit, whose latent grid has this side."""
    return -(-(grid**2) // 8)
