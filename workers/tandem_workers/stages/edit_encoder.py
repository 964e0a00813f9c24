"""The encode stage of edits: the model's square is put back into its picture. CPU only, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.images import Codec, Provenance
from tandem_workers.dataset.columns import as_lists
from tandem_workers.dataset.row_settings import column
from tandem_workers.dataset.shards import EncodedShard, PixelShard
from tandem_workers.dataset.token_columns import BOX, DRAWN_CELLS, EDITED, PICTURE_INDEX, SOURCE_TOKENS
from tandem_workers.pictures.edit_pictures import EditPictures
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.stages.encoder import ImageEncoder


class EditEncoder(ImageEncoder):
    """Turns the pixels of edits into files of the size of their pictures, with the alpha of these: opaque where a
    picture was drawn anew, else as it was.

    Args:
        pictures: the pictures of the job, which are read again here: only ids travel between the stages.
        put_back: how the model's square is put back.
        keep_tokens: whether columns keep the ids.
        others: of `ImageEncoder`, in order.
    """

    def __init__(
        self,
        pictures: EditPictures,
        put_back: PutBack,
        keep_tokens: bool,
        codec: Codec,
        quality: int,
        provenance: Provenance,
        class_names: Sequence[str],
        row_settings: Sequence[str] = (),
    ) -> None:
        super().__init__(codec, quality, provenance, class_names, row_settings)
        self.pictures, self.put_back, self.keep_tokens = pictures, put_back, keep_tokens

    def __call__(self, shard: PixelShard) -> EncodedShard:
        """Same rows, same order. InputError for a picture that is gone or has changed."""
        encoded = super().__call__(shard)
        if self.keep_tokens and shard.source is not None and shard.drawn is not None:
            encoded.extra = {**encoded.extra, SOURCE_TOKENS: as_lists(shard.source), DRAWN_CELLS: as_lists(shard.drawn)}
        return encoded

    def finished(self, shard: PixelShard) -> Iterator[tuple[NDArray[np.uint8], Mapping[str, Any] | None]]:
        boxes = column(shard, BOX) if BOX in shard.extra else None
        hashes = {name: column(shard, name) for name in EDITED if name in shard.extra}
        each = self.pictures.read(column(shard, PICTURE_INDEX), boxes)
        for row, (pixels_SS3, found) in enumerate(zip(shard.pixels, each, strict=True)):
            found.check({name: values[row] for name, values in hashes.items()})
            yield self.put_back.whole(pixels_SS3, found, self.codec), self.put_back.about(found, self.pictures.fit)
