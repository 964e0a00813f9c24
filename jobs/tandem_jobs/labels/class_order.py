"""Which number each class of labelled pictures has: by its folder, or in the order that somebody gives."""

from __future__ import annotations

import os
from pathlib import Path

from tandem.class_names import ClassNames, imagenet_names
from tandem.errors import InputError
from tandem.user_files import parse_json, read_text, repeated
from tandem_workers.models.class_files import IMAGENET, NUMBERS, read_class_names
from tandem_workers.pictures.class_labels import ClassLabels
from tandem_workers.pictures.picture_block import PictureSource
from tandem_workers.pictures.picture_folder import PictureFolder

DESCRIPTION = "pictures.json"  # beside the folders that `tandem pictures` makes
MAX_NAMED = 5


def described_classes(path: Path) -> tuple[str, ...] | None:
    """Class names in label order, if the file exists. InputError for other content."""
    if not path.exists():
        return None
    try:
        classes = parse_json(read_text(path))["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected an object with a list 'classes', got {error!r}") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or repeated(classes):
        raise InputError(f"{path}: expected 'classes' to be a list of different names")
    return tuple(classes)


def choose_classes(source: PictureSource, asked: str | None) -> ClassLabels:
    """Names and labels of the pictures of a source.

    Args:
        asked: "imagenet", "numbers", a file of names in label order, or None: `pictures.json` in the folder around an
            image folder, else the order of the source.

    Raises InputError for a class that is not among the names, LabelError for another file.
    """
    if asked == NUMBERS:
        return ClassLabels()
    given, origin = given_names(source, asked)
    if given is None or source.class_names is None:
        return ClassLabels(source.class_names if given is None else given.names)
    labels = [label_by_name(given, name) for name in source.class_names]
    unknown = [name for name, label in zip(source.class_names, labels, strict=True) if label is None]
    if unknown:
        raise InputError(
            f"{source.place}: expected the classes of {origin} ({some(given.names)}), found also {some(unknown)}",
            "all pictures that belong together need one list of classes: --class-names FILE gives it",
        )
    if len(set(labels)) < len(labels):
        twice = [name for name, label in zip(source.class_names, labels, strict=True) if labels.count(label) > 1]
        raise InputError(f"{source.place}: expected a class of {origin} for each folder, {some(twice)} share one")
    found = tuple(label for label in labels if label is not None)
    return ClassLabels(given.names, None if found == tuple(range(len(found))) else found)


def given_names(source: PictureSource, asked: str | None) -> tuple[ClassNames | None, str]:
    """Names in label order that somebody gave, and where."""
    if asked == IMAGENET:
        return imagenet_names(), IMAGENET
    if asked is not None:
        return read_class_names(asked, None), asked
    if isinstance(source, PictureFolder) and "://" not in source.place:
        path = Path(os.path.abspath(os.path.expanduser(source.place))).parent / DESCRIPTION
        names = described_classes(path)
        return None if names is None else ClassNames(names), str(path)
    return None, ""


def label_by_name(given: ClassNames, name: str) -> int | None:
    """The label of the class with this name, synonym or WordNet id; None unless it is one."""
    labels = given.named(name)
    return labels[0] if len(labels) == 1 else None


def some(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(repr, names[:MAX_NAMED])) + more
