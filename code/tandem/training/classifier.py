"""A small classifier of real pictures; its labels and features are used to measure generated ones.

Shapes: B batch, C channels, h w grid, F features, n pictures. Pixels are float [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.checkpoints.checkpoint_reader import read_weights
from tandem.checkpoints.weights import write_tensors
from tandem.errors import CheckpointError
from tandem.training.pictures import PictureSet, augment, draw
from tandem.vqvae import to_float


class HalfSize(nn.Module):
    """A strided convolution, then a residual one."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(8, out_channels), nn.GroupNorm(8, out_channels)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h_BChw = F.gelu(self.norm1(self.down(x_BChw)))
        return h_BChw + F.gelu(self.norm2(self.conv(h_BChw)))


class Classifier(nn.Module):
    """Residual convolutions on a pixel-unshuffled stem; the features are the pooled last layer."""

    def __init__(self, num_classes: int, width: int = 64):
        super().__init__()
        self.stem = nn.Conv2d(48, width, 3, padding=1)
        self.stages = nn.Sequential(HalfSize(width, 2 * width), HalfSize(2 * width, 2 * width))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, num_classes)

    def features(self, x_B3HW: Tensor) -> Tensor:
        """Pooled features float [B, F], F = 2 x width."""
        h_BChw = self.stages(F.gelu(self.stem(F.pixel_unshuffle(x_B3HW, 4))))
        return h_BChw.mean(dim=(2, 3))

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x_B3HW)))


def train_classifier(pictures: PictureSet, steps: int, batch: int, seed: int) -> Classifier:
    """Train only on real pictures, classes drawn evenly, so that rare ones count as much."""
    torch.manual_seed(seed)
    model = Classifier(len(pictures.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    weights = pictures.weights(power=0.0)
    for step in range(steps):
        generator = torch.Generator().manual_seed((seed << 32) + step)
        picks = draw(pictures, weights, batch, generator)
        pixels = augment(to_float(pictures.pixels[picks]), generator, strength=1.0, flip=True, colour=0.0)
        loss = F.cross_entropy(model(pixels), pictures.labels[picks], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def examine(model: Classifier, pixels_n3HW: Tensor, chunk: int = 128) -> tuple[Tensor, Tensor]:
    """(predicted labels int64 [n], features float [n, F]) of uint8 pictures [n, 3, H, W]."""
    predicted, features = [], []
    for part in pixels_n3HW.split(chunk):
        features.append(model.features(to_float(part)))
        predicted.append(model.head(features[-1]).argmax(dim=1))
    return torch.cat(predicted), torch.cat(features)


def save_classifier(path: Path, model: Classifier, header: dict[str, Any]) -> None:
    """Write safetensors in float16; `header` has "classes", the class names in label order, and how it was made."""
    write_tensors(path, model.state_dict(), {"kind": "classifier", **header}, torch.float16)


def load_classifier(path: Path) -> tuple[Classifier, tuple[str, ...]]:
    """A classifier in float32, and its class names. CheckpointError where the file holds none."""
    tensors, header = read_weights(path)
    if header.get("kind") != "classifier" or not isinstance(header.get("classes"), list):
        raise CheckpointError(f"{path}: expected a classifier of pictures, got {header.get('kind') or 'other weights'}")
    model = Classifier(len(header["classes"]))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: expected a classifier's weights: {str(error).splitlines()[-1].strip()}"
        ) from None
    return model.requires_grad_(False).eval(), tuple(header["classes"])
