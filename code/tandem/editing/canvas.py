"""A picture of any size within the model's square, and the way back.

Shapes: H, W pixels of the picture, S the side of the model's square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tandem.editing.masks import Mask, bounds
from tandem.errors import InputError, PictureSizeError
from tandem.image_folder import MAX_PIXELS

Fit = Literal["crop", "pad", "resize"]
Blend = Literal["paste", "feather", "none"]
Pixels = NDArray[np.uint8]
FEATHER = 1 / 32  # of the shorter side of what the model sees: the default width of the seam


@dataclass(frozen=True)
class Canvas:
    """Where the model's square lies in a picture.

    Attributes:
        shape: (H, W) of the picture.
        side: S.
        box: (left, top, right, bottom) of the square in the picture, in its pixels; it may reach beyond the picture.
    """

    shape: tuple[int, int]
    side: int
    box: tuple[int, int, int, int]

    @classmethod
    def of(cls, fit: Fit, mask: Mask, side: int, max_pixels: int = MAX_PIXELS) -> Canvas:
        """The square for a mask.

        Args:
            fit: "crop": the largest square in the picture, as near to its middle as the mask allows. "pad": the whole
                picture, with its border pixels repeated to a square. "resize": the whole picture, stretched.
            mask: pixels that are drawn anew.
            side: S, of the model's images.
            max_pixels: of the square; long pictures have far more in it than they have themselves.

        Raises InputError for a mask that reaches beyond every square in the picture, PictureSizeError for a square of
        too many pixels.
        """
        if fit not in get_args(Fit):
            raise InputError(f"fit: expected one of {', '.join(get_args(Fit))}, got {fit!r}")
        height, width = mask.shape
        if fit == "resize":
            return cls((height, width), side, (0, 0, width, height))
        length = min(height, width) if fit == "crop" else max(height, width)
        if length * length > max_pixels:
            raise PictureSizeError(
                f"fit: expected a square of at most {max_pixels} pixels around the picture, got {length} x {length}",
                "fit resize takes long pictures",
            )
        left, top = (width - length) // 2, (height - length) // 2
        if fit == "crop" and (found := bounds(mask)):
            if found[2] - found[0] > length or found[3] - found[1] > length:
                raise InputError(
                    f"mask: expected one within a square of {length} pixels, the picture's shorter side, "
                    f"got {found[2] - found[0]} x {found[3] - found[1]}",
                    "fit pad or resize takes any mask",
                )
            left = min(max(left, found[2] - length), found[0])
            top = min(max(top, found[3] - length), found[1])
        return cls((height, width), side, (left, top, left + length, top + length))

    @property
    def covered(self) -> Mask:
        """The pixels of the picture in the square: bool [H, W]."""
        left, top, right, bottom = self.box
        covered = np.zeros(self.shape, bool)
        covered[max(top, 0) : bottom, max(left, 0) : right] = True
        return covered

    def square(self, pixels: Pixels) -> Pixels:
        """The model's view of the picture: uint8 [S, S, 3]."""
        return resized(self._cut(pixels), (self.side, self.side))

    def square_mask(self, mask: Mask) -> Mask:
        """Its view of a mask, bool [S, S]: a pixel is drawn anew if any pixel of the picture within it is."""
        cut = self._cut(mask)
        for axis in (0, 1):
            edges = np.arange(self.side + 1) * cut.shape[axis] / self.side
            first = np.floor(edges[:-1]).astype(int)
            last = np.maximum(np.ceil(edges[1:]).astype(int), first + 1)
            counts = np.concatenate([np.zeros_like(cut.take([0], axis), int), cut.cumsum(axis)], axis)
            cut = counts.take(last, axis) > counts.take(first, axis)
        return cut

    def put_back(self, made: Pixels, pixels: Pixels, mask: Mask, blend: Blend, feather: float | None = None) -> Pixels:
        """The picture with the model's square in it: uint8 [H, W, 3].

        Args:
            made: the model's image, uint8 [S, S, 3].
            pixels: the picture.
            mask: pixels that are drawn anew, of the picture.
            blend: "paste": the made pixels inside the mask, all others as they were. "feather": the same, but outside
                the mask they fade into the picture, in linear light, and are as they were beyond `feather`. "none": all
                pixels of the square as the model made them.
            feather: pixels of the picture over which they fade, at most the square's shorter side in it; default: 1/32
                of that.
        """
        if blend not in get_args(Blend):
            raise InputError(f"blend: expected one of {', '.join(get_args(Blend))}, got {blend!r}")
        left, top, right, bottom = self.box
        size = right - left, bottom - top
        whole = resized(made, size)
        height, width = self.shape
        inner = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        new = whole[inner[0].start - top : inner[0].stop - top, inner[1].start - left : inner[1].stop - left]
        out = pixels.copy()
        if blend == "none":
            out[inner] = new
            return out
        if blend == "paste":
            out[inner][mask[inner]] = new[mask[inner]]
            return out
        width_px = max(1, round(min(size) * FEATHER)) if feather is None else min(round(feather), min(size))
        weight = weights(mask, width_px)[inner]
        whole_part, faded = weight >= 1, (weight > 0) & (weight < 1)
        out[inner][whole_part] = new[whole_part]
        out[inner][faded] = mixed(pixels[inner][faded], new[faded], weight[faded])
        return out

    def _cut(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the picture in the square, those at its border repeated beyond it."""
        left, top, right, bottom = self.box
        height, width = self.shape
        rows, columns = np.arange(top, bottom).clip(0, height - 1), np.arange(left, right).clip(0, width - 1)
        return values[rows][:, columns]


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Pixels of (width, height) `size`, by Lanczos; the same ones if they have it."""
    image = Image.fromarray(pixels)
    return pixels if image.size == size else np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def weights(mask: Mask, width: int) -> NDArray[np.float64]:
    """Share of the made pixels, float [H, W]: 1 inside the mask, falling to 0 over `width` pixels outside it."""
    share = np.zeros(mask.shape)
    if (found := bounds(mask)) is None:
        return share
    inner = width // 2
    left, top, right, bottom = found
    near = slice(max(0, top - width), bottom + width), slice(max(0, left - width), right + width)
    grown = window_means(mask[near], width - inner) > 0
    share[near] = window_means(grown, inner)
    return share


def window_means(mask: Mask, radius: int) -> NDArray[np.float64]:
    """Share of true pixels in the square of 2 radius + 1 pixels around each, the border repeated: float [H, W]."""
    side = 2 * radius + 1
    sums = np.pad(np.pad(mask.astype(np.int64), radius, mode="edge"), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2


def mixed(old_N3: Pixels, new_N3: Pixels, weight_N: NDArray[np.float64]) -> Pixels:
    """Colours between two in linear light, so that a seam is no darker than both sides: uint8 [N, 3].

    Source: IEC 61966-2-1, the transfer function of sRGB.
    """
    steps = np.arange(256) / 255
    linear = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
    share_N1 = weight_N[:, None]
    light_N3 = linear[old_N3] * (1 - share_N1) + linear[new_N3] * share_N1
    shown_N3 = np.where(light_N3 <= 0.0031308, light_N3 * 12.92, 1.055 * light_N3 ** (1 / 2.4) - 0.055)
    return (shown_N3 * 255).round().astype(np.uint8)
