"""Which class of one list is which of another: by names, as numbers may be those of other lists."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tandem.class_names import ClassNames, imagenet_names, normalised, with_synonyms
from tandem.errors import InputError
from tandem.user_files import shown
from tandem_workers.features.embedded_classifier import embedded_class_names
from tandem_workers.features.extractors import EFFICIENTNET_LITE0, EMBEDDED, INCEPTION, Extractor
from tandem_workers.features.inception import VARIABLE
from tandem_workers.models.class_files import IMAGENET, read_class_names
from tandem_workers.pictures.picture_block import PictureSource

MAX_NAMED = 3


def classifier_names(extractor: Extractor) -> ClassNames | None:
    """The classes that an extractor's logits stand for, None where that is not known."""
    if extractor.class_names == "imagenet":
        return imagenet_names()
    return ClassNames(embedded_class_names()) if extractor.class_names == "embedded" else None


def names_of(source: PictureSource, asked: str | None) -> ClassNames | None:
    """The class names of pictures: their own, else those that the user asked for, by label number.

    Names that are numbers, as the folders of exported images, are labels in the list that was asked for.
    `asked`: "embedded", "imagenet" or a file of names. LabelError for a file that is none.
    """
    own = source.class_names
    numbers = [int(name) for name in own] if own and all(n.isascii() and n.isdigit() for n in own) else None
    if asked is None or (own is not None and numbers is None):
        return with_synonyms(own) if own else None
    names = ClassNames(embedded_class_names()) if asked == EMBEDDED else None
    if asked == IMAGENET:
        names = imagenet_names()
    names = names or read_class_names(asked, None)
    if numbers is None:
        return names
    if max(numbers) >= len(names):
        raise InputError(
            f"{source.place}: expected class numbers below {len(names)}, as --class-names names, got {max(numbers)}"
        )
    return ClassNames(tuple(names[number] for number in numbers))


def match(labels: Iterable[int], ours: ClassNames, theirs: ClassNames) -> dict[int, int]:
    """For each label of ours that has a class of the same name in theirs, and no other of ours has, that class."""
    found: dict[int, int] = {}
    for label in labels:
        same = theirs.named(ours[label]) if label < len(ours) else ()
        if len(same) != 1 and ours.wnids and label < len(ours):
            same = theirs.named(ours.wnids[label])
        if len(same) == 1:
            found[label] = same[0]
    taken = Counter(found.values())
    return {label: there for label, there in found.items() if taken[there] == 1}


def translated(label: NDArray[np.int32], classes: dict[int, int]) -> NDArray[np.int32]:
    """Labels int32 [n] as classes of the other list, -1 for those that have none there."""
    table = np.full(max(0, int(label.max(initial=-1))) + 2, -1, dtype=np.int32)  # the last one is for label -1
    for ours, theirs in classes.items():
        table[ours] = theirs
    return table[label]


def labels_of(label: NDArray[np.int32]) -> list[int]:
    """The labels that occur, without -1."""
    return [int(found) for found in np.unique(label) if found >= 0]


def named(labels: Iterable[int], names: ClassNames | None) -> str:
    """A few labels in a message."""
    texts = [names[label] if names and label < len(names) else str(label) for label in labels]
    return shown(", ".join(texts[:MAX_NAMED])) + (f" and {len(texts) - MAX_NAMED} more" if texts[MAX_NAMED:] else "")


def default_extractor(names: ClassNames | None, inception_file: str | None = None) -> tuple[str, str]:
    """The embedded classifier for its own classes, else Inception if its file is there, else EfficientNet-Lite0.

    Its name, and why it is this one.
    """
    if are_embedded(names):
        return EMBEDDED, "the classes are those of the embedded model"
    if inception_file or os.environ.get(VARIABLE):
        return INCEPTION, "its file is given"
    return EFFICIENTNET_LITE0, f"no file of Inception is given ({VARIABLE})"


def are_embedded(names: ClassNames | None) -> bool:
    """Whether all names are among those of the embedded model."""
    known = set(map(normalised, embedded_class_names()))
    return bool(names) and all(normalised(name) in known for name in names or ())
