"""The encode stage: pixels to image files. CPU only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.images import Codec, Provenance, check_codec, encode_image
from tandem_workers.dataset.row_settings import own_settings
from tandem_workers.dataset.shards import EncodedShard, PixelShard


class ImageEncoder:
    """Turns a shard's pixels into files, one after the other, each with its own provenance.

    Args:
        codec, quality: see `tandem.images.encode_image`; checked here, before any shard arrives.
        provenance: values of the whole job; index, label and class name are filled in for each image.
        class_names: the name of every label, in label order.
        row_settings: columns of a shard that are settings of its rows, for each image's provenance.
    """

    name = "encode"

    def __init__(
        self,
        codec: Codec,
        quality: int,
        provenance: Provenance,
        class_names: Sequence[str],
        row_settings: Sequence[str] = (),
    ) -> None:
        check_codec(codec, quality)
        self.codec: Codec = codec
        self.quality = quality
        self.provenance = provenance
        self.class_names = tuple(class_names)
        self.row_settings = tuple(row_settings)

    def __call__(self, shard: PixelShard) -> EncodedShard:
        """Same rows, same order; `seconds` gains "encode". InputError for a label without a name."""
        start = perf_counter()
        names, images = self.class_names, []
        rows = zip(shard.index.tolist(), shard.label.tolist(), own_settings(shard, self.row_settings), strict=True)
        for (index, label, own), (pixels, edit) in zip(rows, self.finished(shard), strict=True):
            if not 0 <= label < len(names):
                raise InputError(f"label: expected 0 to {len(names) - 1}, got {label} at index {index}")
            provenance = replace(self.provenance.for_image(index, label, names[label], own), edit=edit)
            images.append(encode_image(pixels, self.codec, self.quality, provenance))
        seconds = {**shard.seconds, self.name: perf_counter() - start}
        return EncodedShard.of(shard, images=images, seconds=seconds)

    def finished(self, shard: PixelShard) -> Iterator[tuple[NDArray[np.uint8], Mapping[str, Any] | None]]:
        """The pixels of each file, and what its provenance says of an edit."""
        return ((pixels, None) for pixels in shard.pixels)
