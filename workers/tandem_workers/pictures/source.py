"""Finds out which kind of pictures lies at a place, and opens it."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from tandem.errors import InputError
from tandem.image_folder import is_hidden
from tandem.user_files import check_spelling, shown
from tandem_workers.pictures.npz_file import open_npz_file
from tandem_workers.pictures.own_dataset import holds_job, open_own_dataset
from tandem_workers.pictures.parquet_files import open_parquet_files
from tandem_workers.pictures.picture_block import NO_LABEL, PictureBlock, PictureSource
from tandem_workers.pictures.picture_folder import has_class_images, open_picture_folder
from tandem_workers.pictures.web_dataset import open_web_dataset
from tandem_workers.storage.local_store import LocalStore
from tandem_workers.storage.places import open_store
from tandem_workers.storage.s3_address import SCHEME
from tandem_workers.storage.store import Store

__all__ = ["NO_LABEL", "PictureBlock", "PictureSource", "open_pictures"]

FILE_KINDS = (".tar", ".parquet", ".npz")
TABLES = ("metadata.parquet",)  # beside the images of an image folder: columns, no pictures
KINDS = "a dataset of Tandem, class folders of images, .tar or .parquet files, or one .npz file"


def open_pictures(place: str) -> PictureSource:
    """The pictures at a folder, a file, s3://bucket/prefix or s3://bucket/key.

    A dataset of Tandem is known by its job.json, other kinds by the names of the files.

    Raises:
        InputError: nothing is there, or nothing of a known kind, or several kinds; a dataset that is not complete.
        OutputError: the place cannot be read.
    """
    source = find_pictures(place)
    if source.num_blocks == 0:
        raise InputError(f"{place}: expected pictures, the {source.kind} has none")
    return source


def find_pictures(place: str) -> PictureSource:
    """The pictures of a place, perhaps none."""
    store, file = open_place(place)
    if file:
        return open_files(place, store, PurePosixPath(file).suffix.lower(), store.versions(file))
    if holds_job(store):
        return open_own_dataset(place, store)
    versions = store.versions()
    by_kind = {
        kind: {path: version for path, version in versions.items() if is_of_kind(path, kind)} for kind in FILE_KINDS
    }
    kinds = [kind for kind, found in by_kind.items() if found]
    if has_class_images(versions):
        kinds.append("class folders of images")
    if len(kinds) > 1:
        raise InputError(
            f"{place}: expected pictures of one kind, got {' and '.join(kinds)}", "name one of its folders"
        )
    if kinds and kinds[0] in FILE_KINDS:
        return open_files(place, store, kinds[0], by_kind[kinds[0]])
    if kinds or (versions and isinstance(store, LocalStore)) or has_linked_folders(store):
        return open_picture_folder(place, store)  # its errors say what an image folder lacks
    got = f"{len(versions)} other files, such as {shown(min(versions))}" if versions else "no file"
    raise InputError(f"{place}: expected {KINDS}, got {got}")


def open_files(place: str, store: Store, kind: str, versions: dict[str, str]) -> PictureSource:
    """Pictures in files of one kind. InputError where there is none, or several `.npz` files."""
    if not versions:
        raise InputError(f"expected pictures at {place}, there is nothing")
    if kind == ".tar":
        return open_web_dataset(place, store, versions)
    if kind == ".parquet":
        return open_parquet_files(place, store, versions)
    if len(versions) > 1:
        raise InputError(f"{place}: expected one .npz file, got {len(versions)}", "name one of them")
    return open_npz_file(place, store, next(iter(versions)))


def open_place(place: str) -> tuple[Store, str]:
    """The store of a folder and "", or that of the folder around a file and the file's name. InputError."""
    check_spelling(place)
    if place.startswith(SCHEME):
        address, _, name = place.rpartition("/")
        is_file = PurePosixPath(name).suffix.lower() in FILE_KINDS and address.startswith(SCHEME)
        try:
            return (open_store(address), name) if is_file else (open_store(place), "")
        except InputError as error:
            raise InputError(str(error).removeprefix("out: ")) from None
    if "://" in place:
        raise InputError(f"expected a folder, a file, s3://bucket/prefix or s3://bucket/key, got {shown(place)}")
    path = os.path.expanduser(place)
    if os.path.isdir(path):
        return open_store(path), ""
    if not os.path.exists(path):
        raise InputError(f"expected pictures at {shown(place)}, there is nothing")
    if PurePosixPath(path).suffix.lower() not in FILE_KINDS:
        raise InputError(f"{shown(place)}: expected {KINDS}, got another file")
    folder, name = os.path.split(os.path.abspath(path))
    return open_store(folder), name


def is_of_kind(path: str, kind: str) -> bool:
    found = PurePosixPath(path)
    hidden = any(is_hidden(PurePosixPath(part)) for part in found.parts)
    return found.name.lower().endswith(kind) and not hidden and found.name not in TABLES


def has_linked_folders(store: Store) -> bool:
    """Whether links lead to folders, perhaps of classes, which a store does not list."""
    return isinstance(store, LocalStore) and any(path.is_symlink() and path.is_dir() for path in store.root.iterdir())
