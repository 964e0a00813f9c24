"""What a place with pictures gives: blocks of labelled pictures, read one at a time.

1.3 million pictures fit in no memory, so nothing here holds more than a block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tandem.errors import InputError
from tandem.image_folder import decode_image
from tandem.user_files import shown
from tandem_workers.storage.store import Store

NO_LABEL = -1


@dataclass(frozen=True)
class PictureBlock:
    """n pictures, in the order of their index.

    Attributes:
        block: its number in the source.
        index: int64 [n], unique over the source and rising from block to block.
        label: int32 [n], -1 where the source has none.
        names: n names for messages: a path in the source, or a file and a row.
        encoded: n image files as stored, or None where the source holds arrays.
        pixels: uint8 [n, H, W, 3], RGB, or None where the source holds files.
        columns: other columns of n rows, if the source was asked for them and has some.
        lost_columns: names of columns that cannot be read.
    """

    block: int
    index: NDArray[np.int64]
    label: NDArray[np.int32]
    names: tuple[str, ...]
    encoded: list[bytes] | None = None
    pixels: NDArray[np.uint8] | None = None
    columns: pa.Table | None = None
    lost_columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def part(self, places: Sequence[int]) -> PictureBlock:
        """A block of some of the pictures."""
        return PictureBlock(
            self.block,
            self.index[places],
            self.label[places],
            tuple(self.names[place] for place in places),
            [self.encoded[place] for place in places] if self.encoded is not None else None,
            self.pixels[places] if self.pixels is not None else None,
        )

    def decoded(self) -> Iterator[NDArray[np.uint8]]:
        """Every picture, see `picture`."""
        return map(self.picture, range(len(self)))

    def picture(self, at: int) -> NDArray[np.uint8]:
        """One picture as uint8 [H, W, 3], RGB. InputError names it if it cannot be read."""
        if self.pixels is not None:
            return self.pixels[at]
        assert self.encoded is not None
        return decode_image(self.encoded[at], self.names[at])


class PictureSource(Protocol):
    """A place with pictures. It can be pickled, and opens its files by itself in another process.

    Attributes:
        place: the place as given by the user.
        kind: in words, such as "image folder".
        num_blocks: a block is what is read at once: a shard of a dataset, a tar, a row group, some hundred files.
        class_names: the name of every label, in label order, or None where labels are numbers alone.
        identity: JSON values that differ where the content differs: hashes from a manifest, else sizes with ETags or
            times of change.
        is_checked: whether files are compared with hashes when they are read, so that none can be damaged.
        notes: sentences on what was left out.
    """

    @property
    def place(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def is_checked(self) -> bool: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def count(self, block: int) -> int:
        """The number of pictures in a block, without decoding any. A tar is read for it, all else is known."""

    def read(self, block: int) -> PictureBlock:
        """A block. InputError names a file that is damaged, gone, or not what it should be."""


@dataclass(frozen=True, kw_only=True)
class ForeignFiles:
    """What the sources have alike whose files are not Tandem's: no hash says what a file should be."""

    kind: ClassVar[str]
    is_checked: ClassVar[bool] = False

    place: str
    store: Store
    identity: dict[str, Any]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def content_of(source: PictureSource) -> dict[str, Any]:
    """What tells the pictures of a source from others, in a few values: for the identity of what is made of them."""
    text = json.dumps(source.identity, sort_keys=True)
    return {"kind": source.kind, "blocks": source.num_blocks, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def identity_of(kind: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """The identity of a source whose files have no hashes, from the versions that the store gives."""
    lines = "\n".join(f"{path}\t{version}" for path, version in sorted(versions.items()))
    digest = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
    return {"kind": kind, "files": len(versions), "versions_sha256": digest}


def as_labels(values: list[Any], names: tuple[str, ...]) -> NDArray[np.int32]:
    """Labels int32 [n], -1 for None. InputError names the picture whose label is no whole number from 0 on."""
    for name, value in zip(names, values, strict=True):
        if value is not None and (type(value) is not int or not 0 <= value < 2**31):
            raise InputError(f"{name}: expected a label from 0 on, got {shown(repr(value), 60)}")
    return np.array([NO_LABEL if value is None else value for value in values], dtype=np.int32)
