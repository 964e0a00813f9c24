"""Pictures to edit, each with what is drawn anew of it and where the model's square lies in it."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.editing.canvas import Canvas, Fit
from tandem.editing.expand import expanded
from tandem.editing.masks import MIDDLE, Mask, Picture, boxes_mask, parse_boxes, read_mask, read_picture
from tandem.errors import InputError
from tandem_workers.pictures.picture_block import PictureBlock, PictureSource
from tandem_workers.pictures.read_ahead import check_count, read_ahead

Boxes = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class EditPicture:
    """One picture and its edit.

    Attributes:
        name: of the file in its place, or of the row in its file.
        picture, mask: the picture, with margins if it is expanded, and what is drawn anew of it, bool [H, W].
        canvas: where the model's square lies.
        sha256: hex digest of the file, or of the pixels where the source holds arrays.
    """

    name: str
    picture: Picture
    mask: Mask
    canvas: Canvas
    sha256: str

    @property
    def mask_sha256(self) -> str:
        """Hex digest of the mask: of its height, width and pixels, a bit each, whatever it was given as."""
        shape = np.array(self.mask.shape, "<u4").tobytes()
        return hashlib.sha256(shape + np.packbits(self.mask).tobytes()).hexdigest()

    @property
    def edited_share(self) -> float:
        """Share of the pixels that are drawn anew."""
        return float(self.mask.mean())

    def check(self, hashes: Mapping[str, Any]) -> None:
        """InputError unless picture and mask have the hashes of a row, as far as it has any."""
        for column, found in (("picture_sha256", self.sha256), ("mask_sha256", self.mask_sha256)):
            if (known := hashes.get(column, found)) != found:
                what = column.removesuffix("_sha256")
                raise InputError(f"{self.name}: expected the {what} that was encoded, sha256 {known}, got {found}")


@dataclass(frozen=True)
class EditPictures:
    """All pictures of a job. It can be pickled, and reads in another process.

    Attributes:
        source: the pictures; a picture's number is its place in them.
        counts: pictures of each of its blocks.
        side: S, of the model's images.
        fit: see `Canvas.of`.
        masks, mask_counts: a mask for each picture, in the same order; None if there are none.
        mask_file: name and bytes of a mask for all pictures.
        boxes: drawn anew in all pictures for which no row says otherwise.
        margins: see `tandem.editing.expand.expanded`.
    """

    source: PictureSource
    counts: tuple[int, ...]
    side: int
    fit: Fit = "crop"
    masks: PictureSource | None = None
    mask_counts: tuple[int, ...] = ()
    mask_file: tuple[str, bytes] | None = None
    boxes: Boxes = ()
    margins: tuple[float, float, float, float] | None = None

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, numbers: Sequence[int], boxes: Sequence[str | None] | None = None) -> Iterator[EditPicture]:
        """The pictures of some rows, in order; rows that follow each other with the same picture and boxes share it.

        Rows in the order of the pictures read each block once.

        Args:
            numbers: of the pictures.
            boxes: of each row in place of `boxes`, as `parse_boxes` takes them; None for none.

        Raises InputError, naming the picture, if it or its mask cannot be used.
        """
        masks = self.each(self.masks, self.mask_counts, numbers) if self.masks is not None else None
        before: tuple[int, str | None] | None = None
        made: EditPicture | None = None
        for row, (block, at) in enumerate(self.each(self.source, self.counts, numbers)):
            mask_at = next(masks) if masks is not None else None
            own = boxes[row] if boxes is not None else None
            if made is None or (numbers[row], own) != before:
                made, before = self.prepare(block, at, mask_at, own), (numbers[row], own)
            yield made

    def each(
        self, source: PictureSource, counts: Sequence[int], numbers: Sequence[int]
    ) -> Iterator[tuple[PictureBlock, int]]:
        """The block of each picture, and the picture's place in it. The next block is read meanwhile."""
        ends = np.cumsum(counts).tolist()
        if (most := max(numbers, default=-1)) >= ends[-1]:
            raise InputError(f"{source.place}: expected {most + 1} or more pictures, got {ends[-1]}")
        wanted = [(bisect_right(ends, number), number) for number in numbers]
        runs = [(block, [number for _, number in run]) for block, run in groupby(wanted, lambda pair: pair[0])]
        for (block, run), found in zip(runs, read_ahead(source.read, [block for block, _ in runs]), strict=True):
            check_count(source, found, counts[block])
            yield from ((found, number - (ends[block] - counts[block])) for number in run)

    def prepare(
        self, block: PictureBlock, at: int, mask_at: tuple[PictureBlock, int] | None, own: str | None
    ) -> EditPicture:
        """A picture with its mask and canvas. InputError, naming the picture."""
        name = block.names[at]
        picture = picture_at(block, at)
        shape = picture.pixels.shape[:2]
        try:
            mask = self.mask_of(shape, mask_at, own)
            if self.margins is not None:
                picture, mask = expanded(picture, mask, self.margins, name)
            canvas = Canvas.of(self.fit, mask, self.side)
        except InputError as error:
            raise InputError(str(error) if name in str(error) else f"{name}: {error}", error.hint) from None
        data = block.pixels[at].tobytes() if block.encoded is None else block.encoded[at]  # type: ignore[index]
        short = name.removeprefix(f"{self.source.place.rstrip('/')}/")
        return EditPicture(short, picture, mask, canvas, hashlib.sha256(data).hexdigest())

    def mask_of(self, shape: tuple[int, int], mask_at: tuple[PictureBlock, int] | None, own: str | None) -> Mask:
        """What is drawn anew of a picture, before it is expanded. InputError for a mask of another size."""
        if own is not None:
            return boxes_mask(parse_boxes(own), shape)
        if mask_at is not None:
            return mask_of_block(*mask_at, shape)
        if self.mask_file is not None:
            name, data = self.mask_file
            return read_mask(data, name, shape)
        if self.boxes:
            return boxes_mask(self.boxes, shape)
        return np.zeros(shape, bool)


def picture_at(block: PictureBlock, at: int) -> Picture:
    """A picture of a block, with its alpha. InputError names it if it is not one still picture of 8 bits."""
    if block.encoded is not None:
        return read_picture(block.encoded[at], block.names[at])
    pixels = block.picture(at)
    return Picture(pixels, pixels)


def mask_of_block(block: PictureBlock, at: int, shape: tuple[int, int]) -> Mask:
    """The mask at a place of a block, see `read_mask`. InputError names it if it cannot be used."""
    if block.encoded is not None:
        return read_mask(block.encoded[at], block.names[at], shape)
    pixels = block.picture(at)
    if pixels.shape[:2] != shape:
        expected, got = f"{shape[1]} x {shape[0]}", f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise InputError(f"{block.names[at]}: expected a mask of the picture's size, {expected}, got {got}")
    mask: NDArray[np.bool_] = pixels.mean(2) >= MIDDLE
    return mask
