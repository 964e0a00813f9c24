"""Writes pictures as the `.npz` file that the ADM evaluator takes, block by block: 50,000 of 256 px are 9.8 GB.

`arr_0` is uint8 [n, H, W, 3], `arr_1` the labels, int64 [n]. Both are stored plainly and with a fixed date, so equal
pictures give equal bytes, and a reader finds any picture without unpacking those before.
"""

from __future__ import annotations

import os
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tandem.errors import InputError, OutputError
from tandem_workers.pictures.npz_file import IMAGES, LABELS
from tandem_workers.pictures.picture_block import NO_LABEL, PictureSource
from tandem_workers.pictures.read_ahead import check_count, decode_by_threads, read_ahead

DATE = (1980, 1, 1, 0, 0, 0)  # the first one of zip files


def write_npz(
    path: Path, source: PictureSource, counts: list[int], overwrite: bool, progress: Callable[[int], None]
) -> tuple[tuple[int, ...], bool]:
    """Write all pictures of a source and, if every one has a label, their labels.

    Returns the shape of `arr_0`, and whether there are labels.

    Args:
        path: gets its content when that is complete; after an error it is as before.
        counts: pictures of each block.
        overwrite: replace an existing file.
        progress: called with the number of pictures of each block, when they are written.

    Raises:
        InputError: a picture is broken, or of another size than the first; the source has changed.
        OutputError: the file exists already, or cannot be written.
    """
    with whole_file(path, overwrite) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open(member(IMAGES), "w", force_zip64=True) as out:
            shape, labels = write_images(out, source, counts, progress)
        if labelled := NO_LABEL not in labels:
            with archive.open(member(LABELS), "w", force_zip64=True) as out:
                write_header(out, labels.dtype, labels.shape)
                out.write(labels.tobytes())
    return shape, labelled


def write_images(
    out: Any, source: PictureSource, counts: list[int], progress: Callable[[int], None]
) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Write `arr_0`. Returns its shape, and the labels."""
    shape, first, labels = tuple[int, ...](), "", list[NDArray[np.int64]]()
    for block in read_ahead(source.read, range(source.num_blocks)):
        check_count(source, block, counts[block.block])
        labels.append(block.label.astype("<i8"))
        for name, pixels in zip(block.names, decode_by_threads(block), strict=True):
            if not shape:
                shape, first = (sum(counts), *pixels.shape), name
                write_header(out, pixels.dtype, shape)
            if pixels.shape != shape[1:]:
                size, got = (f"{each[0]} x {each[1]}" for each in (shape[1:], pixels.shape))
                raise InputError(
                    f"{name}: expected {size} pixels (height x width) as {first} has, got {got}",
                    "an .npz file holds pictures of one size",
                )
            out.write(np.ascontiguousarray(pixels).data)
        progress(len(block))
    return shape, np.concatenate(labels)


def member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{name}.npy", DATE)


def write_header(out: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """What is before the values of an `.npy` file of format 1.0."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)


@contextmanager
def whole_file(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """Context manager: a new file, written under another name beside its own, which it gets when it is complete.

    OutputError if a file has that name by then, unless it is to be replaced, or if the file cannot be written.
    """
    check_free(path, overwrite)
    temporary = path.with_name(f".{uuid.uuid4().hex}.npz.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # fails where the name exists
    except FileExistsError:
        raise already_there(path) from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_free(path: Path, overwrite: bool) -> None:
    """OutputError if a file cannot be written under a name, before anything is read."""
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: expected a folder {path.parent}, there is none")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: expected the name of a file, got that of a folder")
    if path.exists() and not overwrite:
        raise already_there(path)


def already_there(path: Path) -> OutputError:
    return OutputError(f"{path} is already there", "--overwrite replaces it")
