"""Finds the pictures and masks of an edit at a place, which need no labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from tandem.errors import InputError
from tandem.image_folder import is_hidden, is_image
from tandem.user_files import check_spelling, shown
from tandem_workers.pictures.own_dataset import holds_job
from tandem_workers.pictures.picture_block import NO_LABEL, PictureSource, identity_of
from tandem_workers.pictures.picture_folder import PictureFolder
from tandem_workers.pictures.source import open_pictures, open_place
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store

FILES_AT_ONCE = 16  # of a folder: what is read together, also if rows ask for one of them


def open_edit_pictures(place: str) -> PictureSource:
    """The pictures of a place: an image file, a folder of image files, or what `open_pictures` takes.

    Raises:
        InputError: nothing is there, or nothing of a known kind; a dataset that is not complete.
        OutputError: the place cannot be read.
    """
    check_spelling(place)
    folder, slash, name = place.rpartition("/")
    if is_image(PurePosixPath(name)):
        store = open_store(folder or slash or ".")
        if not store.exists(name):
            raise InputError(f"expected a picture at {shown(place)}, there is nothing")
        return image_files(folder or ".", store, store.versions(name))
    source = loose_images(place) or open_pictures(place)
    return replace(source, per_block=FILES_AT_ONCE) if isinstance(source, PictureFolder) else source


def loose_images(place: str) -> PictureFolder | None:
    """The image files of a folder without class folders; None for another place. Raises like `open_pictures`."""
    store, file = open_place(place)
    if file or holds_job(store):
        return None
    versions = store.versions()
    found = {path: version for path, version in versions.items() if is_visible_image(path)}
    return image_files(place, store, found) if found and not any("/" in path for path in found) else None


def is_visible_image(path: str) -> bool:
    """Whether a path is that of an image, and not hidden."""
    found = PurePosixPath(path)
    return is_image(found) and not any(is_hidden(PurePosixPath(part)) for part in found.parts)


def image_files(place: str, store: Store, versions: dict[str, str]) -> PictureFolder:
    """Image files without labels, by their paths."""
    files = tuple((path, NO_LABEL) for path in sorted(versions))
    identity = identity_of("image files", versions)
    return PictureFolder(place=place, store=store, files=files, identity=identity, per_block=FILES_AT_ONCE)


def match_masks(masks: PictureSource, pictures: PictureSource) -> PictureSource:
    """The masks in the order of the pictures.

    Files of folders are matched by their paths, without the suffix. Others are in order already. InputError for a
    picture without a mask.
    """
    if not (isinstance(masks, PictureFolder) and isinstance(pictures, PictureFolder)):
        return masks
    by_stem = {stem(path): (path, label) for path, label in masks.files}
    lacking = [path for path, _ in pictures.files if stem(path) not in by_stem]
    if lacking:
        raise InputError(
            f"--masks: expected a mask for every picture, {masks.place} has none for {len(lacking)} of "
            f"{len(pictures.files)}, such as {shown(lacking[0])}",
            "masks have the paths of the pictures below their folder; the suffix may differ",
        )
    return replace(masks, files=tuple(by_stem[stem(path)] for path, _ in pictures.files))


def stem(path: str) -> str:
    """A path without its suffix."""
    return str(PurePosixPath(path).with_suffix(""))
