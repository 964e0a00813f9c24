"""A source of pictures in memory, and small TorchScript networks."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tandem_workers.pictures.picture_block import PictureBlock


@dataclass(frozen=True)
class DrawnPictures:
    """Blocks of random pictures as PNG. Each reading of a block is noted in `log`, if there is one.

    `dies_at`: the first process to read this block is killed. `broken`: the index of a picture that is no image.
    """

    place: str
    num_blocks: int = 3
    per_block: int = 4
    sides: tuple[int, ...] = (8,)
    log: str = ""
    dies_at: int = -1
    broken: int = -1
    kind: str = "image folder"
    class_names: tuple[str, ...] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {"blocks": self.num_blocks, "per_block": self.per_block, "sides": list(self.sides)}

    def count(self, block: int) -> int:
        return self.per_block

    def read(self, block: int) -> PictureBlock:
        if self.log:
            mark = Path(self.log, f"died-{block}")
            if block == self.dies_at and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with Path(self.log, "reads").open("a") as file:
                file.write(f"{block}\n")
        index = np.arange(self.per_block, dtype=np.int64) + block * self.per_block
        names = tuple(f"{i:03d}.png" for i in index)
        files = [b"no image" if i == self.broken else self.png(int(i)) for i in index]
        return PictureBlock(block, index, (index % 3).astype(np.int32), names, files)

    def png(self, index: int) -> bytes:
        side = self.sides[index % len(self.sides)]
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue()


class MeanColours(nn.Module):
    """Three features: the mean of each channel; and two logits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(dim=(2, 3))
        return mean, mean[:, :2] * 2


class Branches(nn.Module):
    """A layer with the branch `conv`, as the layers of Inception are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tower = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x)], 1)


class TinyInception(nn.Module):
    """The structure of the standard Inception file with a few weights: 10 features, 6 logits."""

    def __init__(self, off: float = 128.0) -> None:
        super().__init__()
        self.off = off
        self.layers = nn.Sequential()
        self.layers.add_module("conv", nn.Conv2d(3, 4, 3, stride=16))
        self.layers.add_module("mixed_6", Branches())
        self.layers.add_module("pool2", nn.AdaptiveAvgPool2d(1))
        self.output = nn.Linear(10, 6)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        height, width = img.shape[2], img.shape[3]
        theta = torch.eye(2, 3)
        theta[0, 2] = 1.0 / width - 1.0 / 299
        theta[1, 2] = 1.0 / height - 1.0 / 299
        grid = nn.functional.affine_grid(
            theta.repeat(img.shape[0], 1, 1), [img.shape[0], 3, 299, 299], align_corners=False
        )
        x = nn.functional.grid_sample(img.float(), grid, padding_mode="border", align_corners=False)
        features = self.layers((x - self.off) / 128).flatten(1)
        return features if return_features else self.output(features)


def save_torchscript(path: Path, module: nn.Module, description: str | None = None) -> str:
    """Write a network as TorchScript; returns its path."""
    torch.manual_seed(0)
    extra = {"preprocessing.json": description} if description is not None else {}
    torch.jit.save(torch.jit.script(module.eval()), str(path), _extra_files=extra)
    return str(path)
