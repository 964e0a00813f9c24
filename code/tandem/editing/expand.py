"""Out-painting: a picture with margins that are drawn anew."""

from __future__ import annotations

import numpy as np

from tandem.editing.masks import Mask, Picture, four_numbers
from tandem.errors import InputError
from tandem.image_folder import MAX_PIXELS, check_pixels

MOST_GROWTH = 4  # times a side


def parse_margins(text: str) -> tuple[float, float, float, float]:
    """The four numbers of "LEFT,TOP,RIGHT,BOTTOM". InputError for another text."""
    margins = four_numbers("expand: expected LEFT,TOP,RIGHT,BOTTOM", text)
    if max(margins) == 0:
        raise InputError(f"expand: expected a margin above 0, got {text!r}")
    return margins


def expanded(
    picture: Picture,
    mask: Mask,
    margins: tuple[float, float, float, float],
    name: str = "the picture",
    max_pixels: int = MAX_PIXELS,
) -> tuple[Picture, Mask]:
    """A larger picture whose margins are in the mask.

    Args:
        picture: H x W pixels; those at its border are repeated into the margins, which are opaque.
        mask: what else is drawn anew, bool [H, W].
        margins: left, top, right, bottom: shares of width and height if none exceeds 1, else pixels.
        name: for errors.
        max_pixels: of the larger picture.

    Raises InputError for a picture that would become more than four times as wide or high, PictureSizeError for one of
    too many pixels.
    """
    height, width = mask.shape
    left, top, right, bottom = margins
    if max(margins) <= 1:
        left, right, top, bottom = left * width, right * width, top * height, bottom * height
    x, y = (round(left), round(right)), (round(top), round(bottom))
    if sum(x) + width > MOST_GROWTH * width or sum(y) + height > MOST_GROWTH * height:
        raise InputError(
            f"{name}: expected margins that make {width} x {height} pixels at most {MOST_GROWTH} times as wide and "
            f"high, got {sum(x) + width} x {sum(y) + height}"
        )
    if sum(x) + sum(y) == 0:
        raise InputError(f"{name}: expected a margin of a pixel or more, got 0 at {width} x {height} pixels")
    check_pixels((sum(x) + width, sum(y) + height), name, max_pixels)
    grown = Picture(
        np.pad(picture.pixels, (y, x, (0, 0)), mode="edge"),
        np.pad(picture.shown, (y, x, (0, 0)), mode="edge"),
        None if picture.alpha is None else np.pad(picture.alpha, (y, x), constant_values=255),
    )
    return grown, np.pad(mask, (y, x), constant_values=True)
