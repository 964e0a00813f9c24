"""Labelled pictures to train on: an ImageFolder in memory, and its augmentation.

Shapes: n pictures, B batch, H W pixels. Pictures are uint8 [n, 3, H, W]; batches are float [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tandem.errors import InputError


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one split, sorted by class and name."""

    pixels: Tensor  # uint8 [n, 3, H, W]
    labels: Tensor  # int64 [n]
    names: tuple[str, ...]  # file stems; variants of one picture share the part before "~"
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> list[str]:
        """Name of the picture that each file is a variant of."""
        return [name.split("~")[0] for name in self.names]

    def weights(self, power: float = 0.5) -> Tensor:
        """Probability of drawing each file: a class weighs (distinct pictures)^power, each picture alike.

        All variants of a picture share its weight. float64 [n], sums to 1.
        """
        groups = [(int(label), group) for label, group in zip(self.labels, self.groups, strict=True)]
        variants: dict[tuple[int, str], int] = {}
        for group in groups:
            variants[group] = variants.get(group, 0) + 1
        pictures = [sum(1 for label, _ in variants if label == c) for c in range(len(self.classes))]
        class_weight = [count**power for count in pictures]
        total = sum(class_weight)
        return torch.tensor(
            [class_weight[g[0]] / total / pictures[g[0]] / variants[g] for g in groups], dtype=torch.float64
        )


def load_pictures(root: Path, classes: tuple[str, ...] | None = None) -> PictureSet:
    """Read ROOT/<class>/<picture>.png. Classes are the given names in order, or the sorted folder names.

    Raises InputError when the folder is missing or empty, or sizes differ.
    """
    if not root.is_dir():
        raise InputError(
            f"expected a folder of pictures, got {root}", "tandem pictures --out DIR makes one to try with"
        )
    names = classes or tuple(sorted(p.name for p in root.iterdir() if p.is_dir()))
    pixels, labels, stems = [], [], []
    for label, name in enumerate(names):
        for path in sorted((root / name).glob("*.png")):
            with Image.open(path) as image:
                pixels.append(np.asarray(image.convert("RGB")))
            labels.append(label)
            stems.append(path.stem)
    if not pixels:
        raise InputError(f"expected {root}/<class>/<picture>.png, found no PNG file")
    if len(shapes := {p.shape for p in pixels}) > 1:
        raise InputError(f"expected pictures of one size below {root}, got {sorted(shapes)[:4]}")
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return PictureSet(stacked, torch.tensor(labels), tuple(stems), names)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 [..] -> float32 [-1, 1]."""
    return pixels.float().div(127.5).sub(1)


def draw(pictures: PictureSet, weights: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Indices int64 [B] of a random batch."""
    return torch.multinomial(weights, batch, replacement=True, generator=generator)


def augment(x_B3HW: Tensor, generator: torch.Generator, strength: float, flip: bool, colour: float) -> Tensor:
    """Random affine change around the centre on a white ground, mirror, and colour.

    `strength` 1 means up to 8 % shift, 12 % size and 6 degrees; `colour` is the chance of mixing the channels.
    """
    batch = len(x_B3HW)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, generator=generator) * (high - low) + low

    zoom = torch.exp(uniform(-0.12, 0.12) * strength)
    angle = uniform(-0.105, 0.105) * strength
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(batch)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    row_x = torch.stack([cos * mirror, -sin, uniform(-0.16, 0.16) * strength], 1)
    row_y = torch.stack([sin * mirror, cos, uniform(-0.16, 0.16) * strength], 1)
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), list(x_B3HW.shape), align_corners=False)
    # grid_sample pads with 0, so white is moved there and back
    x_B3HW = F.grid_sample(x_B3HW - 1, grid, mode="bilinear", align_corners=False) + 1
    if colour > 0:
        order = torch.argsort(torch.rand(batch, 3, generator=generator), dim=1)
        chosen = (uniform(0, 1) < colour)[:, None]
        order = torch.where(chosen, order, torch.arange(3).expand(batch, 3))
        x_B3HW = torch.gather(x_B3HW, 1, order[:, :, None, None].expand_as(x_B3HW))
    return x_B3HW
