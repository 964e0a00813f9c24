"""Extracts features: an actor reads a block, decodes and resizes its pictures, and puts the block's feature file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tandem_workers.features.extractors import Columns, Extractor
from tandem_workers.features.feature_files import FeatureBlock, FeatureFiles, merged
from tandem_workers.pictures.picture_block import PictureBlock, PictureSource
from tandem_workers.stages.block_actors import BlockWork, SharedNetwork


@dataclass(frozen=True)
class Extraction(BlockWork):
    """What an actor needs: pictures, extractor, files, and how many pictures go through the network at once."""

    name: ClassVar[str] = "features"

    source: PictureSource
    extractor: Extractor
    files: FeatureFiles
    batch: int = 64

    @property
    def title(self) -> str:
        return self.extractor.title

    def load(self, device: torch.device, cpus: int) -> Callable[[int], int]:
        network, shared = self.extractor.load(device), SharedNetwork(self.name, self.batch)

        def run(pixels: NDArray[Any]) -> Columns:
            return merged(shared.run(lambda rows: network(pixels[rows]), len(pixels)))

        def extract(block: int) -> int:
            features = extract_block(self.source.read(block), self.extractor, run, self.batch)
            self.files.put(block, features)
            return len(features)

        return extract


def extract_block(
    pictures: PictureBlock, extractor: Extractor, network: Callable[[NDArray[Any]], Columns], batch: int
) -> FeatureBlock:
    """Features of a block's pictures, and their sizes.

    Only one batch of decoded pictures is in memory. InputError names a picture that cannot be read.
    """
    parts: list[Columns] = []
    waiting: list[NDArray[Any]] = []
    sizes: Counter[str] = Counter()
    for pixels in pictures.decoded():
        height, width, _ = pixels.shape
        sizes[f"{width} x {height}"] += 1
        waiting.append(extractor.resized(pixels))
        if len(waiting) == batch:
            parts.append(network(np.stack(waiting)))
            waiting = []
    if waiting:
        parts.append(network(np.stack(waiting)))
    return FeatureBlock(pictures.index, pictures.label, merged(parts), dict(sorted(sizes.items())))
