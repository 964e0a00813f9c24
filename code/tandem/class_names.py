"""Names of classes, and the search for a class by name.

In a name, commas separate synonyms, as in the published names of ImageNet: "tench, Tinca tinca". Case, runs of spaces
and underscores make no difference. A whole name takes precedence over a synonym of another class; a text that names two
classes is ambiguous and refused. A number is that of a class unless a class is called so; "#3" is always number 3.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import overload

from tandem.errors import InputError, LabelError

IMAGENET_CLASSES = 1000
MAX_DIGITS = 9  # of a class number
NUM_NEAREST, NUM_LISTED = 3, 12  # names in a hint
MAX_SHOWN = 80  # characters of a wrong name
WITHOUT_CLASS = ("none", "no class")  # name of the label behind the last class; the second if a class has the first

Index = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ClassNames(Sequence[str]):
    """The classes of a model in label order.

    Attributes:
        names: the name of each class in columns, cards and images.
        wnids: the WordNet id of each class (n02099601), if known.
        more: further synonyms of each class, not in its name.
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...] = ()
    more: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def numbered(cls, count: int) -> ClassNames:
        """Classes with numbers as names."""
        return cls(tuple(map(str, range(count))))

    @overload
    def __getitem__(self, label: int) -> str: ...
    @overload
    def __getitem__(self, label: slice) -> tuple[str, ...]: ...
    def __getitem__(self, label: int | slice) -> str | tuple[str, ...]:
        return self.names[label]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def with_none(self) -> ClassNames:
        """The classes and, behind them, "none": the label of the transformers' unconditional class."""
        name = next(name for name in WITHOUT_CLASS if not self.named(name))
        return ClassNames(
            (*self.names, name),
            (*self.wnids, "") if self.wnids else (),
            (*self.more, ()) if self.more else (),
        )

    @property
    def are_numbers(self) -> bool:
        """Whether the names are just the label numbers."""
        return self.names == tuple(map(str, range(len(self))))

    @property
    def digest(self) -> str:
        """Hex sha256 of the names in label order."""
        return hashlib.sha256(json.dumps(self.names).encode()).hexdigest()

    def synonyms(self, label: int) -> tuple[str, ...]:
        """Synonyms of a class, the most usual first, without its WordNet id."""
        name = self.names[label].removesuffix(f" ({self.wnids[label]})") if self.wnids else self.names[label]
        parts = (part.strip() for part in name.split(","))
        return tuple(dict.fromkeys((*filter(None, parts), *(self.more[label] if self.more else ()))))

    def find(self, text: str) -> int:
        """The label that a name, a synonym, a WordNet id or a number means. LabelError unless it is one class."""
        number = self.number(text)
        if number is not None and text.strip().startswith("#"):
            return number
        labels, got = self.named(text), repr(text[:MAX_SHOWN])
        if len(labels) > 1:
            raise LabelError(
                f"expected a name of one class, got {got}, a name of {' and '.join(map(self.describe, labels))}",
                "a label number, a WordNet id or another synonym says which",
            )
        if labels:
            return labels[0]
        if number is not None:
            return number
        expected = f"expected a class name or a number from 0 to {len(self) - 1}"
        raise LabelError(f"{expected}, got {got}", self.near(text[:MAX_SHOWN]))

    def named(self, text: str) -> tuple[int, ...]:
        """Labels with this text as whole name, else as usual name, else as synonym; ascending."""
        if labels := self.whole.get(text.strip()):
            return labels
        key = normalised(text)
        return self.usual.get(key) or self.others.get(key, ())

    def goes_by(self, label: int, text: str) -> bool:
        """Whether the text is one of the names of a class."""
        return normalised(text) in self.spellings[label] or self.number(text) == label

    def near(self, text: str) -> str:
        """A hint with the names most like the given one."""
        close = get_close_matches(normalised(text), self.shown, NUM_NEAREST)
        if close:
            return f"did you mean {' or '.join(self.shown[key] for key in close)}?"
        return f"classes are {', '.join(self.usual_names[:NUM_LISTED])}{', ...' if len(self) > NUM_LISTED else ''}"

    @property
    def usual_names(self) -> list[str]:
        """The first of the synonyms of each class."""
        return [self.synonyms(label)[0] for label in range(len(self))]

    def matching(self, query: str) -> list[int]:
        """Labels of classes that the query names, then of those with a name that begins with it, then contains it."""
        key = normalised(query)
        found = [label for label, spellings in enumerate(self.spellings) if any(key in text for text in spellings)]
        found.sort(key=lambda label: not any(text.startswith(key) for text in self.spellings[label]))
        number = [label] if (label := self.number(query)) is not None else []
        return list(dict.fromkeys((*number, *self.named(query), *found)))

    def number(self, text: str) -> int | None:
        """The label of a text of digits, as in "3" or "#3"; None if there is no such class."""
        digits = text.strip().removeprefix("#")
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS
        return int(digits) if is_number and int(digits) < len(self) else None

    def describe(self, label: int) -> str:
        """A class in a message: 134 (crane, n02012849)."""
        return f"{label} ({self.synonyms(label)[0]}, {self.wnids[label]})" if self.wnids else f"{label} ({self[label]})"

    @cached_property
    def whole(self) -> Index:
        return index_of((name, label) for label, name in enumerate(self.names))

    @cached_property
    def usual(self) -> Index:
        """By whole name and by the first of the synonyms."""
        usual = ((text, label) for label, name in enumerate(self.names) for text in (name, self.synonyms(label)[0]))
        return index_of((normalised(text), label) for text, label in usual)

    @cached_property
    def others(self) -> Index:
        texts = ((text, label) for label in range(len(self)) for text in self.synonyms(label))
        ids = ((wnid, label) for label, wnid in enumerate(self.wnids))
        return index_of((normalised(text), label) for text, label in (*texts, *ids))

    @cached_property
    def spellings(self) -> list[tuple[str, ...]]:
        """All normalised names of each class."""
        found = []
        for label, name in enumerate(self.names):
            wnid = (self.wnids[label],) if self.wnids else ()
            found.append(tuple(map(normalised, (name, *self.synonyms(label), *wnid))))
        return found

    @cached_property
    def shown(self) -> dict[str, str]:
        """Each synonym as it is written, by its normalised form."""
        texts = (text for label in range(len(self)) for text in self.synonyms(label))
        return {normalised(text): text for text in texts}


def normalised(text: str) -> str:
    """A name in its normal form, equal for all its spellings."""
    words = " ".join(unicodedata.normalize("NFC", text).replace("_", " ").split())
    return re.sub(" ?, ?", ", ", words).casefold()


def index_of(pairs: Iterable[tuple[str, int]]) -> Index:
    found: dict[str, dict[int, None]] = {}
    for text, label in pairs:
        found.setdefault(text, {})[label] = None
    return {text: tuple(sorted(labels)) for text, labels in found.items()}


@lru_cache(maxsize=1)
def imagenet_names() -> ClassNames:
    """The 1,000 classes of ImageNet-1k. Source and licence of the list: imagenet_1k.md beside it.

    Four names are also the usual name of another class. They have the WordNet id added: "crane (n02012849)".
    """
    rows = list(csv.DictReader((files("tandem") / "imagenet_1k.csv").read_text(encoding="utf-8").splitlines()))
    usual = Counter(key for row in rows for key in {normalised(row["name"]), normalised(row["name"].split(",")[0])})
    names = (row["name"] if usual[normalised(row["name"])] == 1 else f"{row['name']} ({row['wnid']})" for row in rows)
    return ClassNames(tuple(names), tuple(row["wnid"] for row in rows))


def with_synonyms(names: tuple[str, ...]) -> ClassNames:
    """Class names; if all are WordNet ids, as the folders of ImageNet and its subsets, with their synonyms."""
    known = imagenet_names()
    labels = {wnid: label for label, wnid in enumerate(known.wnids)}
    if not all(name in labels for name in names):
        return ClassNames(names)
    return ClassNames(names, more=tuple(known.synonyms(labels[name]) for name in names))


def check_names(names: object, num_classes: int | None, source: str) -> tuple[str, ...]:
    """Names that came with a model: text, one per class if the number is known. Raises InputError otherwise."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{source}: expected a list of names, got {names!r:.60}")
    if num_classes is not None and len(names) != num_classes:
        raise InputError(f"{source}: expected {num_classes} names, got {len(names)}")
    if nameless := [label for label, name in enumerate(names) if not normalised(name).strip(" ,")]:
        raise InputError(f"{source}: expected a name for each class, got {names[nameless[0]]!r} for {nameless[0]}")
    for label, name in enumerate(names):
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise InputError(f"{source}: expected names without control characters, got {name!a:.60} for {label}")
    return tuple(names)
