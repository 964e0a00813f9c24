"""Labelled pictures to train on: an ImageFolder in memory, and its augmentation.

Shapes: n pictures, B batch, H W pixels. Pictures are uint8 [n, 3, H, W]; batches are float [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tandem.errors import InputError
from tandem.image_folder import list_image_folder
from tandem.training.balance import balanced


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one split, sorted by class and name."""

    pixels: Tensor  # uint8 [n, 3, H, W]
    labels: Tensor  # int64 [n]
    names: tuple[str, ...]  # paths below the class, no suffix; variants of one picture share the part before "~"
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()  # on what was left out

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Hex sha256 of pixels, labels, names and classes: they identify the data of a training run."""
        digest = hashlib.sha256("\n".join((*self.classes, *self.names)).encode(errors="surrogateescape"))
        digest.update(self.labels.numpy().tobytes())
        digest.update(self.pixels.numpy().tobytes())
        return digest.hexdigest()

    @property
    def groups(self) -> list[str]:
        """Name of the picture that each file is a variant of."""
        return [name.split("~")[0] for name in self.names]

    def weights(self, power: float) -> Tensor:
        """Probability of drawing each file: a class weighs (distinct pictures)^power, each picture alike.

        All variants of a picture share its weight. float64 [n], sums to 1.
        """
        groups = np.unique(self.groups, return_inverse=True)[1].astype(np.int64)
        return torch.from_numpy(balanced(self.labels.numpy(), groups, power))

    def file_weights(self, power: float) -> Tensor:
        """The same with files in the place of pictures: a class weighs (files)^power, each of its files alike."""
        files = torch.bincount(self.labels, minlength=len(self.classes)).double()
        weight = files[self.labels] ** (power - 1)
        return weight / weight.sum()


def load_pictures(root: Path, classes: tuple[str, ...] | None = None, allow_empty: bool = False) -> PictureSet:
    """Read ROOT/<class>/<image> as `list_image_folder` finds it.

    Raises InputError as `list_image_folder` does, and when a file cannot be read or sizes differ.
    """
    folder = list_image_folder(root, classes, allow_empty)
    pixels: list[NDArray[np.uint8]] = []
    for file, image in folder.read_all():
        if pixels and image.shape != pixels[0].shape:
            expected, got = (f"{p.shape[1]} x {p.shape[0]}" for p in (pixels[0], image))
            first = folder.files[0].path
            raise InputError(f"expected images of one size, got {expected} in {first} and {got} in {file.path}")
        pixels.append(image)
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([file.label for file in folder.files])
    return PictureSet(stacked, labels, tuple(file.name for file in folder.files), folder.classes, folder.notes)


def draw(pictures: PictureSet, weights: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Indices int64 [B] of a random batch."""
    return torch.multinomial(weights, batch, replacement=True, generator=generator)


def augment(
    x_B3HW: Tensor, generator: torch.Generator, strength: float, flip: bool, colour: float, resampled: float = 1.0
) -> Tensor:
    """Random changes on a white ground: mirrored, other colours, and either resampled or moved by whole pixels.

    `resampled` is the share of pictures that get an affine change: up to 8 % shift, 12 % size and 6 degrees at
    `strength` 1. It blurs; the others keep their sharp edges. `colour` is the chance of mixing the channels.
    """
    batch = len(x_B3HW)

    def chance(share: float) -> Tensor:
        return (torch.rand(batch, generator=generator) < share)[:, None, None, None]

    if flip:
        x_B3HW = torch.where(chance(0.5), x_B3HW.flip(-1), x_B3HW)
    if colour > 0:
        order_B3 = torch.argsort(torch.rand(batch, 3, generator=generator), dim=1)
        mixed = torch.gather(x_B3HW, 1, order_B3[:, :, None, None].expand_as(x_B3HW))
        x_B3HW = torch.where(chance(colour), mixed, x_B3HW)
    changed = affine(x_B3HW, generator, strength)
    return changed if resampled >= 1 else torch.where(chance(resampled), changed, moved(x_B3HW, generator))


def affine(x_B3HW: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Random shift, size and rotation around the centre, bilinear."""

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(len(x_B3HW), generator=generator) * (high - low) + low) * strength

    zoom, angle = torch.exp(uniform(-0.12, 0.12)), uniform(-0.105, 0.105)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [torch.stack([cos, -sin, uniform(-0.16, 0.16)], 1), torch.stack([sin, cos, uniform(-0.16, 0.16)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x_B3HW.shape), align_corners=False)
    # grid_sample pads with 0, so white is moved there and back
    return F.grid_sample(x_B3HW - 1, grid, mode="bilinear", align_corners=False) + 1


def moved(x_B3HW: Tensor, generator: torch.Generator, limit: int = 4) -> Tensor:
    """The whole batch shifted by up to `limit` pixels."""
    dy, dx = torch.randint(-limit, limit + 1, (2,), generator=generator).tolist()
    height, width = x_B3HW.shape[-2:]
    padded = F.pad(x_B3HW, (limit,) * 4, value=1.0)
    return padded[..., limit + dy : limit + dy + height, limit + dx : limit + dx + width]
