"""Real pictures that a study compares images with, and their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.training.pictures import PictureSet, draw
from tandem_jobs.evaluation.frechet import FeatureSums, Gaussian
from tandem_jobs.evaluation.reference_file import open_reference
from tandem_jobs.train import emoji
from tandem_jobs.train.splits import check_size, load_splits
from tandem_workers.features.embedded_classifier import embedded_class_names
from tandem_workers.features.extract import extract_block
from tandem_workers.features.extractors import FEATURES, Columns, Extractor
from tandem_workers.models.model_set import ModelSet
from tandem_workers.pictures.picture_block import PictureBlock

Network = Callable[[NDArray[Any]], Columns]


@dataclass(frozen=True)
class RealPictures:
    """
    Attributes:
        name: for reports.
        gaussian: of their features, for the Fréchet distance.
        features: [m, F], or None where statistics alone are known.
        splits: training and held-out pictures, where a folder of both was given.
        note: which statistics are used, where that is not plain.
    """

    name: str
    gaussian: Gaussian
    features: NDArray[np.float32] | None = None
    splits: tuple[PictureSet, PictureSet] | None = None
    note: str = ""


def find_splits(data: Path | None, out: Path, models: ModelSet) -> tuple[Path, tuple[PictureSet, PictureSet]]:
    """Training and held-out pictures in a folder; without one, for the embedded models, made in OUT/pictures.

    Raises InputError when other models have no folder, npm is missing, or size or classes are not the models'.
    """
    if data is None:
        if tuple(models.class_names) != embedded_class_names():
            raise InputError("expected real pictures to compare with: --data FOLDER or --reference PLACE")
        data = out / "pictures"
        if not data.exists():
            out.mkdir(parents=True, exist_ok=True)
            try:
                emoji.run(emoji.PicturesSpec.model_validate({"out": data}))
            except InputError as error:
                hint = "tandem pictures --package FILE.tgz makes them without npm; give their folder with --data"
                raise InputError(str(error), hint) from None
    splits = load_splits(data)
    check_pictures(models, splits[0])
    return data, splits


def check_pictures(models: ModelSet, train: PictureSet) -> None:
    """InputError unless the pictures have the models' size and classes, at least two, in the same order."""
    check_size(train, models.image_size, "the models make")
    theirs, ours = tuple(models.class_names), train.classes
    if len(ours) < 2:
        raise InputError(f"expected pictures of two or more classes to tell apart, got {ours[0]!r} alone")
    if len(ours) != len(theirs) or (set(ours) == set(theirs) and ours != theirs):
        expected, got = (", ".join(names[:12]) for names in (theirs, ours))
        raise InputError(
            f"expected the {len(theirs)} classes of the models in their order ({expected}), got {len(ours)} ({got})",
            'DATA/pictures.json sets the order: {"classes": ["first", "second"]}',
        )


def real_of_splits(
    name: str, splits: tuple[PictureSet, PictureSet], images: int, extractor: Extractor, network: Network, batch: int
) -> RealPictures:
    """Training pictures. For the Fréchet distance as many as there are images are drawn, all classes alike, as the
    images have them; a class of few pictures would else count less on one side."""
    train = splits[0]
    features = features_of(extractor, network, batch, arrays(train.pixels))[FEATURES]
    rows = draw(train, train.weights(power=0.0), images, torch.Generator().manual_seed(0)).numpy()
    return RealPictures(f"{name}, training pictures", gaussian_of(features[rows]), features, splits)


def real_of_reference(place: str, extractor: Extractor, network: Network, batch: int) -> RealPictures:
    """Pictures of any kind that Tandem reads, as they are, or the statistics in an `.npz`. InputError."""
    found = open_reference(place, extractor)
    if found.pictures is None:
        assert found.gaussian is not None
        return RealPictures(place, found.gaussian, note=found.note)
    source = found.pictures
    blocks = (source.read(block) for block in range(source.num_blocks))
    parts = [extract_block(block, extractor, network, batch).columns[FEATURES] for block in blocks]
    features = np.concatenate(parts)
    return RealPictures(place, found.gaussian or gaussian_of(features), features, note=found.note)


def gaussian_of(features: NDArray[np.float32]) -> Gaussian:
    return FeatureSums(features.shape[1], num_groups=1).add(features).gaussian()


def arrays(pixels_n3HW: torch.Tensor) -> Iterator[NDArray[np.uint8]]:
    yield pixels_n3HW.permute(0, 2, 3, 1).numpy()


def features_of(extractor: Extractor, network: Network, batch: int, parts: Iterator[NDArray[np.uint8]]) -> Columns:
    """All columns of pictures that come as uint8 [n, H, W, 3]."""
    found: list[Columns] = []
    for pixels in parts:
        index, label = np.arange(len(pixels)), np.zeros(len(pixels), np.int32)
        names = tuple(f"picture {i}" for i in index.tolist())
        block = PictureBlock(0, index, label, names, pixels=pixels)
        found.append(dict(extract_block(block, extractor, network, batch).columns))
    return {name: np.concatenate([columns[name] for columns in found]) for name in found[0]}
