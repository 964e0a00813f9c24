"""Pictures of an `.npz` file as the ADM evaluator takes them.

`arr_0` is uint8 [n, H, W, 3], and `arr_1`, where labels are known, the whole numbers [n].
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError, TandemError
from tandem.user_files import shown
from tandem_workers.pictures.picture_block import NO_LABEL, ForeignFiles, PictureBlock, as_labels, identity_of
from tandem_workers.storage.store import Store

KIND = "npz file"
IMAGES, LABELS = "arr_0", "arr_1"
BLOCK_BYTES = 64 << 20  # of pixels; a block has at least one picture
CHECKED_AT_ONCE = 4 << 20  # bytes
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of name and extra field


@dataclass(frozen=True, kw_only=True)
class NpzFile(ForeignFiles):
    """One file; a block is the next pictures of up to 64 MB, and the index counts them all.

    Where the array is stored plainly, as `numpy.savez` does, a block is read by itself. In a compressed file all that
    is before it is unpacked again, so such a file is better read by one process, or saved anew.
    """

    kind = KIND

    path: str
    shape: tuple[int, int, int, int]
    labels: NDArray[np.int32] | None

    @property
    def per_block(self) -> int:
        return max(1, BLOCK_BYTES // int(np.prod(self.shape[1:])))

    @property
    def num_blocks(self) -> int:
        return -(-self.shape[0] // self.per_block)

    def count(self, block: int) -> int:
        return min(self.per_block, self.shape[0] - block * self.per_block)

    def check(self) -> None:
        """Read all pictures once. InputError if they have not the checksum in the file; a block alone has none."""
        name = f"{IMAGES}.npy"
        with opened(self.store, self.path) as file, zipfile.ZipFile(file) as archive, archive.open(name) as data:
            while data.read(CHECKED_AT_ONCE):
                pass

    def read(self, block: int) -> PictureBlock:
        first, count, size = block * self.per_block, self.count(block), int(np.prod(self.shape[1:]))
        with opened(self.store, self.path) as file, zipfile.ZipFile(file) as archive:
            member = archive.getinfo(f"{IMAGES}.npy")
            with array_bytes(file, archive, member) as data:
                read_header(data)
                data.seek(first * size, io.SEEK_CUR)
                found = data.read(count * size)
        if len(found) != count * size:
            raise InputError(f"{self.place}: expected {self.shape[0]} pictures in {IMAGES}, its bytes end before")
        index = np.arange(first, first + count, dtype=np.int64)
        label = np.full(count, NO_LABEL, np.int32) if self.labels is None else self.labels[first : first + count]
        names = tuple(f"{self.place}: {IMAGES}[{i}]" for i in index.tolist())
        pixels = np.frombuffer(found, np.uint8).reshape(count, *self.shape[1:])
        return PictureBlock(block, index, label, names, pixels=pixels)


def open_npz_file(place: str, store: Store, path: str) -> NpzFile:
    """A file of a store. Reads the shape and the labels. InputError if the arrays are not those of pictures."""
    with opened(store, path) as file, zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if IMAGES not in names:
            hint = "these are statistics alone, without pictures" if {"mu", "sigma"} <= set(names) else None
            raise InputError(f"{place}: expected an array {IMAGES}, got {shown(', '.join(names)) or 'none'}", hint)
        with archive.open(f"{IMAGES}.npy") as data:
            shape, fortran, dtype = read_header(data)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran:
            order = " in Fortran's order" if fortran else ""
            raise InputError(f"{place}: expected {IMAGES} of uint8 [n, H, W, 3], got {dtype} {list(shape)}{order}")
        labels = read_labels(archive, shape[0], place) if LABELS in names else None
    return NpzFile(
        place=place,
        store=store,
        path=path,
        shape=shape,
        labels=labels,
        identity=identity_of(KIND, store.versions(path)),
    )


def read_labels(archive: zipfile.ZipFile, count: int, place: str) -> NDArray[np.int32]:
    """`arr_1` as int32 [n]. InputError."""
    with archive.open(f"{LABELS}.npy") as data:
        labels = np.lib.format.read_array(io.BytesIO(data.read()), allow_pickle=False)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(f"{place}: expected {LABELS} of whole numbers [{count}], the labels, got {got}")
    return as_labels(labels.tolist(), tuple(f"{place}: {LABELS}[{i}]" for i in range(count)))


def read_header(data: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype of an `.npy` member, whose values come next. ValueError."""
    version = np.lib.format.read_magic(data)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(data)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(data)
    raise ValueError(f"expected an array of format 1.0 or 2.0, got {version}")


@contextmanager
def array_bytes(file: BinaryIO, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[Any]:
    """Context manager: the bytes of a member, able to seek. A plainly stored one is read from the file itself.

    Seeking in a compressed one unpacks all before.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        with archive.open(member) as data:
            yield data
        return
    file.seek(member.header_offset)
    signature, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ValueError("expected a member where the list of members says it is")
    file.seek(name_length + extra_length, io.SEEK_CUR)
    yield file


@contextmanager
def opened(store: Store, path: str) -> Iterator[BinaryIO]:
    """Context manager: a file of a store for reading. InputError names it if it is not a whole zip file of arrays."""
    name = f"{store.uri}/{path}"
    try:
        with store.open(path) as file:
            yield file
    except TandemError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name} is gone, it was there a moment ago") from None
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{name}: not a whole .npz file: {shown(error)}") from None
