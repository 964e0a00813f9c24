"""Pictures of a webdataset: tar files of samples, whose members share the part of their name before the first dot.

A sample has one image (`jpg`, `png`, ...), and its label in `cls` or as `label` of its `json`.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tandem.errors import InputError, TandemError
from tandem.image_folder import SUFFIXES
from tandem.user_files import shown
from tandem_workers.pictures.picture_block import ForeignFiles, PictureBlock, as_labels, identity_of
from tandem_workers.storage.store import Store

KIND = "webdataset"
MAX_SAMPLES = 2**32  # of a tar


@dataclass
class Sample:
    """The members of one sample that are read."""

    name: str
    images: list[tarfile.TarInfo] = field(default_factory=list)
    label: tarfile.TarInfo | None = None
    columns: tarfile.TarInfo | None = None


@dataclass(frozen=True, kw_only=True)
class WebDataset(ForeignFiles):
    """Tars in the order of their names; a block is a tar.

    How many samples a tar has is not known before it is read, so the index of a picture is 2^32 times its tar's number
    and its place in there.
    """

    kind = KIND

    tars: tuple[str, ...]

    @property
    def num_blocks(self) -> int:
        return len(self.tars)

    def count(self, block: int) -> int:
        with self._opened(block) as tar:
            return sum(1 for _ in samples_of(tar, self._name(block)))

    def read(self, block: int) -> PictureBlock:
        images, labels, names = list[bytes](), list[Any](), list[str]()
        with self._opened(block) as tar:
            for sample in samples_of(tar, self._name(block)):
                images.append(extract(tar, sample.images[0]))
                labels.append(label_of(tar, sample))
                names.append(sample.name)
        index = np.arange(len(names), dtype=np.int64) + block * MAX_SAMPLES
        return PictureBlock(block, index, as_labels(labels, tuple(names)), tuple(names), images)

    def _name(self, block: int) -> str:
        return f"{self.store.uri}/{self.tars[block]}"

    @contextmanager
    def _opened(self, block: int) -> Iterator[tarfile.TarFile]:
        """Context manager: the tar for reading. InputError names it if it is damaged."""
        try:
            with self.store.open(self.tars[block]) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
        except TandemError:
            raise
        except FileNotFoundError:
            raise InputError(f"{self._name(block)} is gone, it was there a moment ago") from None
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise InputError(f"{self._name(block)}: not a whole tar file: {shown(error)}") from None


def open_web_dataset(place: str, store: Store, versions: dict[str, str]) -> WebDataset:
    """The tars of a store, with their versions. Reads none of them."""
    return WebDataset(place=place, store=store, tars=tuple(sorted(versions)), identity=identity_of(KIND, versions))


def samples_of(tar: tarfile.TarFile, name: str) -> Iterator[Sample]:
    """The samples of a tar, in order. InputError for one without an image, or with several, or for a tar cut off."""
    sample, key = None, None
    for member in tar:
        if not member.isfile() or member.name.split("/")[-1].startswith("."):
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        if (folder, stem) != key:
            if sample:
                yield checked(sample)
            sample, key = Sample(f"{name}: {folder}{'/' if folder else ''}{stem}"), (folder, stem)
        assert sample is not None
        extension = extension.lower()
        if f".{extension.split('.')[-1]}" in SUFFIXES:
            sample.images.append(member)
        elif extension == "cls":
            sample.label = member
        elif extension == "json":
            sample.columns = member
    check_end(tar, name)
    if sample:
        yield checked(sample)


def check_end(tar: tarfile.TarFile, name: str) -> None:
    """InputError unless the block behind the last member is the empty one that ends a tar.

    At a damaged or cut header tarfile stops as if the tar ended there, and the pictures behind it would be left out.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise InputError(f"{name}: not a whole tar file: it is damaged or cut off at byte {tar.offset}")


def checked(sample: Sample) -> Sample:
    if len(sample.images) != 1:
        found = ", ".join(image.name for image in sample.images) or "none"
        raise InputError(f"{sample.name}: expected one image in the sample, got {shown(found)}")
    return sample


def label_of(tar: tarfile.TarFile, sample: Sample) -> Any:
    """The label of a sample as its `cls` or its `json` has it; None where there is none. InputError."""
    if sample.label is not None:
        text = extract(tar, sample.label).decode(errors="replace").strip()
        return int(text) if text.isascii() and text.isdigit() else text
    if sample.columns is None:
        return None
    try:
        row = json.loads(extract(tar, sample.columns))
    except (ValueError, RecursionError):
        raise InputError(f"{sample.name}: its json is not JSON") from None
    return row.get("label") if isinstance(row, dict) else None


def extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "only files are members of samples"
    data = file.read()
    if len(data) != member.size:
        raise InputError(f"{member.name}: expected {member.size} bytes in the tar, got {len(data)}")
    return data
