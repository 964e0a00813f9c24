"""Class names of a model: from its weights file, from a file of names, or those of ImageNet-1k."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.class_names import IMAGENET_CLASSES, ClassNames, imagenet_names, normalised, with_synonyms
from tandem.errors import InputError, LabelError
from tandem.user_files import check_spelling, parse_json, read_text, shown
from tandem_workers.models.fetch import is_remote
from tandem_workers.models.sources import local_file

NUMBERS, IMAGENET = "numbers", "imagenet"  # values of --class-names other than files
FLAG = "--class-names"
WNID = re.compile(r"n\d{8}")
MAX_NAME = 200  # characters: the endpoint's limit for a prompt


@dataclass(frozen=True)
class NamedClass:
    """One class of a file, and its location there for errors."""

    location: str
    name: str
    synonyms: tuple[str, ...] = ()
    wnid: str | None = None


def choose_class_names(own: tuple[str, ...] | None, asked: str | None, num_classes: int) -> ClassNames:
    """The requested names, else those of the weights, else ImageNet's for 1,000 classes, else numbers.

    Args:
        own: names in the weights file.
        asked: address of a file of names, "imagenet", or "numbers".

    Raises LabelError for a file that does not name each class of the model.
    """
    if asked == NUMBERS:
        return ClassNames.numbered(num_classes)
    if asked == IMAGENET:
        if num_classes != IMAGENET_CLASSES:
            raise LabelError(f"{FLAG}: 'imagenet' needs a model of {IMAGENET_CLASSES} classes, got {num_classes}")
        return imagenet_names()
    if asked is not None:
        return read_class_names(asked, num_classes)
    if own is not None:
        return with_synonyms(own)
    return imagenet_names() if num_classes == IMAGENET_CLASSES else ClassNames.numbered(num_classes)


def read_class_names(address: str, num_classes: int | None) -> ClassNames:
    """Names of all classes from a text file (one a line), CSV or JSON; `num_classes` None: however many there are.

    LabelError naming file, row and cause.
    """
    check_spelling(address)
    path = local_file(address).path if is_remote(address) else Path(address)
    text = read_names(path, address)
    try:
        classes = list(READERS.get(path.suffix.lower(), from_lines)(text))
        check_classes(classes, num_classes)
    except LabelError as error:
        raise LabelError(f"{FLAG}: {shown(address)}{error}", error.hint) from None
    wnids = tuple(found.wnid for found in classes if found.wnid)
    more = tuple(found.synonyms for found in classes)
    return ClassNames(tuple(found.name for found in classes), wnids, more if any(more) else ())


def read_names(path: Path, address: str) -> str:
    try:
        return read_text(path)
    except InputError as error:
        hint = error.hint or f"expected a file of names, '{IMAGENET}' or '{NUMBERS}'"
        raise LabelError(f"{FLAG}: {str(error).replace(shown(path), shown(address))}", hint) from error


def from_lines(text: str) -> Iterator[NamedClass]:
    """One name a line; commas separate synonyms. A WordNet id may come first."""
    for row, line in enumerate(text.splitlines(), 1):
        first, _, rest = line.strip().partition(" ")
        wnid, name = (first, rest.strip()) if WNID.fullmatch(first) and rest.strip() else (None, line.strip())
        yield NamedClass(f", row {row}", name, wnid=wnid)


def from_csv(text: str) -> Iterator[NamedClass]:
    """Columns name and, optionally, label, wnid and synonyms (separated by commas)."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = {"name", "label", "wnid", "synonyms"}
    try:
        found = rows.fieldnames or []
        if "name" not in found or not columns.issuperset(found):
            raise LabelError(
                f": expected a column name and maybe {', '.join(sorted(columns - {'name'}))}, got {shown(found)}"
            )
        for label, row in enumerate(rows):
            location = f", row {label + 1}"
            if None in row or None in row.values():
                raise LabelError(f"{location}: expected {len(found)} cells, got more or fewer")
            if row.get("label") and row["label"].strip() != str(label):
                raise LabelError(
                    f"{location}: expected label {label}, as rows are in label order, got {shown(row['label'], 60)}"
                )
            synonyms = tuple(filter(None, map(str.strip, row.get("synonyms", "").split(","))))
            yield NamedClass(location, row["name"].strip(), synonyms, row.get("wnid", "").strip() or None)
    except csv.Error as error:
        raise LabelError(f", line {rows.line_num}: {error}") from None


def from_json(text: str) -> Iterator[NamedClass]:
    """A list, an object by label: {"0": ...}, or one with the list `classes`, as `tandem pictures` writes.

    A class is a name, or a list of a name and its synonyms.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise LabelError(f": {error}") from None
    if isinstance(values, dict) and isinstance(values.get("classes"), list):
        values = values["classes"]
    if isinstance(values, dict):
        labels = list(map(str, range(len(values))))
        if wrong := sorted(set(values) - set(labels)):
            raise LabelError(f": expected the labels 0 to {len(labels) - 1} as keys, got {shown(repr(wrong[0]), 60)}")
        values = [values[label] for label in labels]
    if not isinstance(values, list):
        raise LabelError(f": expected a list of names, or an object of names by label, got {shown(repr(values), 60)}")
    yield from (of_value(f", label {label}", value) for label, value in enumerate(values))


def of_value(location: str, value: Any) -> NamedClass:
    spellings = value if isinstance(value, list) else [value]
    if not spellings or not all(isinstance(text, str) for text in spellings):
        raise LabelError(
            f"{location}: expected a name, or a list of a name and its synonyms, got {shown(repr(value), 60)}"
        )
    wnid = next((text for text in spellings if WNID.fullmatch(text)), None) if len(spellings) > 1 else None
    name, *synonyms = (text.strip() for text in spellings if text != wnid)
    return NamedClass(location, name, tuple(synonyms), wnid)


READERS: dict[str, Callable[[str], Iterator[NamedClass]]] = {".csv": from_csv, ".json": from_json}


def check_classes(classes: list[NamedClass], num_classes: int | None) -> None:
    """Raise LabelError unless names are distinct, one for each class, and WordNet ids too, if there are any."""
    if num_classes is not None and len(classes) != num_classes:
        raise LabelError(f": expected {num_classes} names, one for each class of the model, got {len(classes)}")
    names: dict[str, str] = {}
    wnids: set[str | None] = set()
    for label, found in enumerate(classes):
        location, name, key = found.location, found.name, normalised(found.name)
        if not key.strip(" ,") or len(name) > MAX_NAME or not name.isprintable():
            raise LabelError(f"{location}: expected a name of 1 to {MAX_NAME} printable characters, got {name[:60]!r}")
        if key.isascii() and key.isdigit() and key != str(label):
            raise LabelError(f"{location}: expected a name, or the class's own number {label}, got {name}")
        if key in names:
            raise LabelError(f"{location}: expected a name of its own, got {name!r} as in{names[key].lstrip(',')}")
        if found.wnid is None and classes[0].wnid is None:
            pass
        elif found.wnid is None or found.wnid in wnids or not WNID.fullmatch(found.wnid):
            raise LabelError(
                f"{location}: expected a WordNet id of its own, as n02099601 is, got {shown(found.wnid or 'none', 60)}"
            )
        names[key] = location
        wnids.add(found.wnid)
