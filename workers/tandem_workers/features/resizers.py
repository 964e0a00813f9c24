"""Resizers: how a picture gets the size that a network takes. They change every number, so each has a name.

Source of "clean": Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", 2022.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tandem.errors import InputError

PILLOW = "pillow-bicubic"  # antialiased, rounded to 8 bits
CLEAN = "clean"  # the same in float32, without rounding
TENSORFLOW = "tensorflow"  # TensorFlow 1's bilinear, without antialiasing: inside the published Inception network
RESIZERS = (PILLOW, CLEAN, TENSORFLOW)


def check_resizer(name: str) -> str:
    """The name itself. InputError for one that is none."""
    if name not in RESIZERS:
        raise InputError(f"resizer: expected one of {', '.join(RESIZERS)}, got {name!r}")
    return name


def resize(pixels: NDArray[np.uint8], size: int, resizer: str) -> NDArray[Any]:
    """uint8 [H, W, 3] -> [size, size, 3], values 0 to 255: uint8 with Pillow, else float32."""
    if resizer == PILLOW:
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    if resizer == CLEAN:
        channels = [_bicubic(pixels[..., channel], size) for channel in range(3)]
        return np.stack(channels, axis=-1).clip(0, 255)
    return _bilinear(pixels.astype(np.float32), size)


def _bicubic(values_HW: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    image = Image.fromarray(values_HW.astype(np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _bilinear(pixels: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """TensorFlow 1's resize_bilinear: the corner of a pixel, and not its middle, is at its coordinate."""
    for axis in (0, 1):
        length = pixels.shape[axis]
        at = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = np.minimum(at.astype(np.int64), length - 1)
        high = np.minimum(low + 1, length - 1)
        share = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        below, above = pixels.take(low, axis), pixels.take(high, axis)
        pixels = below + (above - below) * share
    return pixels
