"""A folder of training and held-out pictures, in memory."""

from __future__ import annotations

from pathlib import Path

from tandem.errors import InputError
from tandem.training.pictures import PictureSet, load_pictures
from tandem_jobs.labels.class_order import DESCRIPTION, described_classes
from tandem_jobs.run.progress import say


def load_splits(data: Path) -> tuple[PictureSet, PictureSet]:
    """Training and held-out pictures; the class order is that of DATA/pictures.json if it exists.

    Prints notes on skipped files. Raises InputError; a class may lack held-out pictures, but not training pictures.
    """
    train = load_pictures(data / "train", described_classes(data / DESCRIPTION))
    heldout = load_pictures(data / "heldout", train.classes, allow_empty=True)
    if heldout.pixels.shape[1:] != train.pixels.shape[1:]:
        expected, got = (list(pictures.pixels.shape[-2:]) for pictures in (train, heldout))
        raise InputError(f"expected held-out pictures of {expected} pixels, like those to train on, got {got}")
    for note in (*train.notes, *heldout.notes):
        say(note)
    if len(train.classes) == 1:
        say(f"one class only: {train.classes[0]}")
    return train, heldout


def check_size(pictures: PictureSet, size: int, source: str) -> None:
    """InputError unless the pictures are squares of `size` pixels."""
    height, width = pictures.pixels.shape[-2:]
    if (height, width) != (size, size):
        raise InputError(f"{source} {size} x {size} px, the pictures have {width} x {height} px")
