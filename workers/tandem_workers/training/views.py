"""Views of a picture in the size of a tokenizer: the plain one, and augmented ones that can be made again.

View 0: the shorter side is resized to the size (Lanczos, with the long side rounded down), then the centre is cut out.
A picture of the size is kept as it is. Other views depend on (seed, index of the picture, number of the view) alone.
Source of `crop`: the training of VAR (arXiv 2404.02905), its published code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tandem.errors import InputError
from tandem.training.pictures import augment
from tandem.vqvae import to_float

Augment = Literal["crop-flip", "crop", "affine"]
MOST_OBLONG = 100  # long side over short side
MARGIN = 1.125  # of `crop`: shorter side before the cut, over the size
# Of `affine`: what the embedded transformers were trained with
AFFINE_STRENGTH, AFFINE_SHARE = 0.4, 0.5


@dataclass(frozen=True)
class Views:
    """Which views of each picture.

    Attributes:
        size: side of the views in pixels.
        count: views of each picture; view 0 is the plain one.
        augment: how the others are made.
            crop: the shorter side is resized to 1.125 times the size, and a random square is cut out.
            crop-flip: the same, and every other one is mirrored at random.
            affine: on a white ground, half are moved by up to 4 pixels, the others shifted, resized and turned.
        seed: of the augmentation.
    """

    size: int
    count: int = 1
    augment: Augment = "crop-flip"
    seed: int = 0

    def of(self, pixels: NDArray[np.uint8], index: int) -> Tensor:
        """All views of a picture uint8 [H, W, 3]: float32 [count, 3, size, size] in [-1, 1]. InputError for a strip."""
        return torch.stack(list(self._each(pixels, index)))

    def _each(self, pixels: NDArray[np.uint8], index: int) -> Iterator[Tensor]:
        plain = as_tensor(centre(resized(pixels, self.size), self.size))
        yield plain
        if self.count == 1:
            return
        larger = None if self.augment == "affine" else resized(pixels, round(MARGIN * self.size))
        for view in range(1, self.count):
            random = stream(self.seed, index, view)
            if larger is None:
                yield affine(plain, random)
                continue
            cut = randomly_cut(larger, self.size, random)
            mirrored = self.augment == "crop-flip" and random.random() < 0.5
            yield as_tensor(cut[:, ::-1] if mirrored else cut)


def stream(seed: int, index: int, view: int) -> np.random.Generator:
    """The random numbers of one view."""
    key, counter = np.array([seed, index], np.uint64), np.array([0, 0, 0, view], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def resized(pixels: NDArray[np.uint8], short: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] with its shorter side resized to `short`; the same pixels if it has that side.

    InputError for a strip: a file of a few kB could become larger than the memory.
    """
    height, width = pixels.shape[:2]
    least = min(height, width)
    if max(height, width) > MOST_OBLONG * least:
        raise InputError(f"expected sides of at most {MOST_OBLONG} to 1, got {width} x {height} pixels")
    if least == short:
        return pixels
    sides = (width * short // least, height * short // least)
    return np.asarray(Image.fromarray(pixels).resize(sides, Image.Resampling.LANCZOS))


def centre(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The square of `size` in the middle."""
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def randomly_cut(pixels: NDArray[np.uint8], size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A square of `size` anywhere."""
    top, left = (int(random.integers(side - size + 1)) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def affine(plain_3HW: Tensor, random: np.random.Generator) -> Tensor:
    """The augmentation of the embedded transformers, of one picture."""
    generator = torch.Generator().manual_seed(int(random.integers(2**32)))
    return augment(plain_3HW[None], generator, AFFINE_STRENGTH, flip=False, colour=0.0, resampled=AFFINE_SHARE)[0]


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W] in [-1, 1]."""
    return to_float(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
