"""The reference of an evaluation: pictures of any kind, or an `.npz` file of statistics, or both in one file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from tandem.errors import InputError
from tandem_jobs.evaluation.frechet import Gaussian, read_gaussian
from tandem_workers.features.extractors import Extractor
from tandem_workers.pictures.npz_file import IMAGES, opened
from tandem_workers.pictures.source import PictureSource, open_pictures, open_place

T = TypeVar("T")
STATISTICS, SPATIAL_STATISTICS = {"mu", "sigma"}, {"mu_s", "sigma_s"}


@dataclass(frozen=True)
class ReferencePlace:
    """
    Attributes:
        place: as given by the user.
        pictures: None where the file has statistics alone.
        gaussian, spatial: statistics that the file has and that are of this extractor's features.
        note: which statistics are used, where that is not plain.
    """

    place: str
    pictures: PictureSource | None
    gaussian: Gaussian | None = None
    spatial: Gaussian | None = None
    note: str = ""


def open_reference(place: str, extractor: Extractor) -> ReferencePlace:
    """The reference at a place. InputError where there is none, or only statistics of another network's features.

    Statistics in a file beside its pictures are those of a larger set of Inception features, as in ADM's reference
    files. They are used with Inception, and with no other network.
    """
    arrays = arrays_of(place)
    if not arrays >= STATISTICS:
        return ReferencePlace(place, open_pictures(place))
    pictures = open_pictures(place) if IMAGES in arrays else None
    is_inception = bool(extractor.standard_names)
    if pictures is not None and not is_inception:
        note = f"{place}: its statistics are of Inception features; those of its pictures were measured instead."
        return ReferencePlace(place, pictures, note=note)
    gaussian = statistics(place)
    if extractor.num_features not in (None, len(gaussian.mean)):
        raise InputError(
            f"{place}: expected statistics of {extractor.num_features:,} features, as {extractor.title} makes, "
            f"got {len(gaussian.mean):,}",
            "--features inception makes 2,048; pictures as --reference do for any network",
        )
    spatial = statistics(place, spatial=True) if arrays >= SPATIAL_STATISTICS and is_inception else None
    distances = "FID and sFID are" if spatial else f"{extractor.number_name('Fréchet distance')} is"
    note = f"{place}: {distances} measured against the statistics in the file"
    note += ", all else against its pictures." if pictures else "."
    return ReferencePlace(place, pictures, gaussian, spatial, note)


def arrays_of(place: str) -> set[str]:
    """Names of the arrays in an `.npz` file, none for other places. InputError."""
    if not place.lower().endswith(".npz"):
        return set()

    def names(file: BinaryIO) -> set[str]:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}

    return reading(place, names)


def statistics(place: str, spatial: bool = False) -> Gaussian:
    """Mean and covariance in an `.npz` file. InputError."""
    return reading(place, lambda file: read_gaussian(file, place, spatial))


def reading(place: str, read: Callable[[BinaryIO], T]) -> T:
    """What `read` makes of a file, local or in S3."""
    store, file = open_place(place)
    if not file:
        raise InputError(f"{place}: expected an .npz file, got a folder")
    with opened(store, file) as stored:
        return read(stored)
