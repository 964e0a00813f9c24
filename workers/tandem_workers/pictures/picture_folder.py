"""Pictures of an image folder in ImageNet's layout, PLACE/<class>/.../<image>, on this machine or in S3.

The rules are those of `tandem.image_folder`: labels number the sorted class folders, hidden files are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from tandem.errors import InputError
from tandem.image_folder import is_hidden, is_image, list_image_folder
from tandem_workers.pictures.picture_block import ForeignFiles, PictureBlock, PictureSource, identity_of
from tandem_workers.storage.local_store import LocalStore
from tandem_workers.storage.s3_parallel import in_parallel
from tandem_workers.storage.store import Store

KIND = "image folder"
FILES_PER_BLOCK = 1000
LEAST_PER_BLOCK, MOST_SMALL = 50, 64  # of `in_small_blocks`
READS_AT_ONCE = 16
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "heldout", "test", "testing", "dev", "eval"))


@dataclass(frozen=True, kw_only=True)
class PictureFolder(ForeignFiles):
    """Image files by class and path; a block is the next `per_block` of them, and the index counts them all."""

    kind = KIND

    files: tuple[tuple[str, int], ...]  # path in the store, label
    per_block: int = FILES_PER_BLOCK

    @property
    def num_blocks(self) -> int:
        return -(-len(self.files) // self.per_block)

    def count(self, block: int) -> int:
        return len(self._files_of(block))

    def read(self, block: int) -> PictureBlock:
        files = self._files_of(block)
        first = block * self.per_block
        return PictureBlock(
            block,
            np.arange(first, first + len(files), dtype=np.int64),
            np.array([label for _, label in files], dtype=np.int32),
            tuple(f"{self.store.uri}/{path}" for path, _ in files),
            in_parallel(self._read_file, [path for path, _ in files], READS_AT_ONCE),
        )

    def _files_of(self, block: int) -> tuple[tuple[str, int], ...]:
        return self.files[block * self.per_block : (block + 1) * self.per_block]

    def _read_file(self, path: str) -> bytes:
        try:
            return self.store.read(path)
        except FileNotFoundError:
            raise InputError(f"{self.store.uri}/{path} is gone, it was there a moment ago") from None


def in_small_blocks(source: PictureSource) -> PictureSource:
    """The same pictures; an image folder in about 64 blocks, of 50 to 1,000 files.

    For work that takes long for each picture: then a small folder occupies many actors, too.
    """
    if not isinstance(source, PictureFolder):
        return source
    return replace(source, per_block=min(FILES_PER_BLOCK, max(LEAST_PER_BLOCK, len(source.files) // MOST_SMALL)))


def open_picture_folder(place: str, store: Store) -> PictureFolder:
    """The image folder at the root of a store. InputError if it has another layout, or a class without images."""
    if isinstance(store, LocalStore):
        found = list_image_folder(store.root)
        files = tuple((file.path.relative_to(store.root).as_posix(), file.label) for file in found.files)
        check_no_splits(place, [path for path, _ in files])
        versions = {path: version_of(store.root / path) for path, _ in files}
        return PictureFolder(
            place=place,
            store=store,
            files=files,
            class_names=found.classes,
            identity=identity_of(KIND, versions),
            notes=found.notes,
        )
    versions = {path: version for path, version in store.versions().items() if is_class_image(path)}
    paths = sorted(versions, key=order)
    check_no_splits(place, paths)
    classes = tuple(sorted({path.split("/")[0] for path in paths}))
    labels = {name: label for label, name in enumerate(classes)}
    files = tuple((path, labels[path.split("/")[0]]) for path in paths)
    return PictureFolder(
        place=place, store=store, files=files, class_names=classes, identity=identity_of(KIND, versions)
    )


def check_no_splits(place: str, paths: Iterable[str]) -> None:
    """InputError for a folder of splits alone, as train/cat/1.png and val/cat/2.png, whose names are no classes."""
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    outer = sorted({parts[0] for parts in folders})
    if outer and SPLITS.issuperset(outer) and all(len(parts) > 1 for parts in folders):
        raise InputError(
            f"expected {place}/<class>/<image>, got folders of classes: {', '.join(outer)}",
            f"name one of them: {place.rstrip('/')}/{outer[0]}",
        )


def version_of(path: Path) -> str:
    """Size and time of change of a file, which a link may lead to. InputError."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return f"{status.st_size} bytes, {status.st_mtime_ns} ns"


def is_class_image(path: str) -> bool:
    """Whether a path is that of an image below a class folder."""
    *folders, name = PurePosixPath(path).parts
    return bool(folders) and is_image(PurePosixPath(name)) and not any(is_hidden(PurePosixPath(f)) for f in folders)


def has_class_images(paths: Iterable[str]) -> bool:
    return any(map(is_class_image, paths))


def order(path: str) -> list[tuple[bool, str]]:
    """Sorts as `tandem.image_folder` lists: by class and path, the files of a folder before those of its folders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]
