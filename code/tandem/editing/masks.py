"""Pictures to edit and masks of them, as people give them.

Shapes: H, W pixels. A mask is bool [H, W], true where the picture is drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tandem.errors import InputError
from tandem.image_folder import MAX_PIXELS, on_white, opened_image

Mask = NDArray[np.bool_]
MIDDLE = 128  # of 8 bits: luminance from here on, and alpha below it, mean "draw anew"


@dataclass(frozen=True)
class Picture:
    """A picture to edit.

    Attributes:
        pixels: uint8 [H, W, 3], RGB; under transparency whatever colour the file has there.
        shown: the same on white, as the model sees it.
        alpha: uint8 [H, W] if the file has any, else None.
    """

    pixels: NDArray[np.uint8]
    shown: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None


def read_picture(
    data: bytes, name: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Picture:
    """The picture of a file's bytes, EXIF orientation applied.

    InputError if it is not one still picture of 8 bits in one of Pillow's `formats` (None: of any), PictureSizeError
    for more than `max_pixels`.
    """
    with opened_image(data, name, max_pixels, formats) as image:
        still = single(image)
        has_alpha = still.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in still.info
        if not has_alpha:
            pixels = np.asarray(on_white(still))
            return Picture(pixels, pixels)
        rgba = np.asarray(still.convert("RGBA"))
        return Picture(rgba[..., :3].copy(), np.asarray(on_white(still)), rgba[..., 3].copy())


def read_mask(
    data: bytes,
    name: str,
    shape: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Mask:
    """The mask of an image file's bytes.

    With an alpha channel alpha alone counts: transparent means "draw anew", as in OpenAI's API. Without one white does:
    luminance of 128 and more.

    Args:
        data: of the file.
        name: of the file, for errors.
        shape: (H, W) of the picture.
        max_pixels: more raise PictureSizeError, and are not decoded.
        formats: Pillow's names of those that are read; None: all.

    Raises InputError if it is not one still picture of 8 bits of that shape.
    """
    with opened_image(data, name, max_pixels, formats) as image:
        still = single(image)
        if (still.height, still.width) != shape:
            raise InputError(
                f"{name}: expected a mask of the picture's size, {shape[1]} x {shape[0]}, "
                f"got {still.width} x {still.height}"
            )
        if still.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in still.info:
            return np.asarray(still.convert("RGBA"))[..., 3] < MIDDLE
        return np.asarray(on_white(still).convert("L")) >= MIDDLE


def single(image: Image.Image) -> Image.Image:
    """The image upright. InputError for several frames, or more than 8 bits a channel."""
    if image.format != "MPO" and has_second(image):  # MPO: a photograph, with a smaller one of itself behind it
        raise InputError("expected a still picture, got several frames")
    if image.mode.startswith(("I", "F")):
        raise InputError(f"expected 8 bits a channel, got mode {image.mode}")
    return ImageOps.exif_transpose(image)


def has_second(image: Image.Image) -> bool:
    """Whether there is a second frame. Counting all of them takes long in some files."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def parse_box(text: str) -> tuple[float, float, float, float]:
    """The four numbers of "x0,y0,x1,y1". InputError for another text."""
    left, top, right, bottom = box = four_numbers("box: expected x0,y0,x1,y1", text)
    if left >= right or top >= bottom:
        raise InputError(f"box: expected 0 <= x0 < x1 and 0 <= y0 < y1, got {text!r}")
    return box


def four_numbers(expected: str, text: str) -> tuple[float, float, float, float]:
    """Four finite numbers from 0 on, separated by commas. InputError, beginning with `expected`, for another text."""
    try:
        first, second, third, fourth = (float(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"{expected}, got {text!r}") from None
    numbers = first, second, third, fourth
    if not all(map(math.isfinite, numbers)) or min(numbers) < 0:
        raise InputError(f"{expected}, numbers from 0 on, got {text!r}")
    return numbers


def parse_boxes(text: str) -> tuple[tuple[float, float, float, float], ...]:
    """The boxes of "x0,y0,x1,y1", several separated by ";". InputError for another text."""
    return tuple(parse_box(part) for part in text.split(";"))


def boxes_mask(boxes: Sequence[tuple[float, float, float, float]], shape: tuple[int, int]) -> Mask:
    """The mask of all boxes together, see `inside`: bool [H, W]."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[inside(box, shape)] = True
    return mask


def box_mask(box: tuple[float, float, float, float], shape: tuple[int, int]) -> Mask:
    """The mask of one box, see `inside`: bool [H, W]."""
    return boxes_mask([box], shape)


def inside(box: tuple[float, float, float, float], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a box (left, top, right, bottom): shares of the picture if none exceeds 1, else pixels.

    Args:
        box: as `parse_box` gives it.
        shape: (H, W) of the picture.

    Raises InputError for a box that ends outside the picture.
    """
    height, width = shape
    left, top, right, bottom = box
    if max(box) <= 1:
        left, right, top, bottom = left * width, right * width, top * height, bottom * height
    if right > width or bottom > height:
        raise InputError(f"box: expected one within {width} x {height} pixels, got {right:g} x {bottom:g}")
    return slice(math.floor(top), math.ceil(bottom)), slice(math.floor(left), math.ceil(right))


def bounds(mask: Mask) -> tuple[int, int, int, int] | None:
    """The smallest box (left, top, right, bottom) around all that is true; None if nothing is."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
