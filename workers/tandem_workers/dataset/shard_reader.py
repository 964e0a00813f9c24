"""Reads the files of a shard back: which rows they hold, and whether they are valid instead of ours.

Two writers of one shard can make different images (another GPU, a halved batch), so an existing file with our name is
not an error by itself. Its content decides.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from tandem.errors import InputError, JobError, TandemError
from tandem.images import EXTENSIONS, read_provenance
from tandem_workers.dataset.job_record import REPAIR
from tandem_workers.dataset.seal import DamagedError
from tandem_workers.dataset.shards import EncodedShard, ShardRows
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store, Stored

File = tuple[str, bytes]  # path in the dataset, content
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # a whole IEND chunk, the one whose checksum Pillow skips
SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS.values())


def check_shard_files(found: Sequence[File], shard: ShardRows, files: Callable[[Any], list[File]]) -> str | None:
    """Why existing files are not a whole, readable shard of this job, in one line; None if they are.

    Args:
        found: the existing files, in the order of `files(shard)`.
        shard: the same shard, as made by this job.
        files: makes the files of a shard, equal for equal rows: `Format.files`.

    PNG images may differ, as their checksums tell a different image from a damaged one; all else must equal what
    `files` makes of our rows and these images. JPEG, WebP and token ids have no checksums, so they must not differ.
    """
    try:
        if [data for _, data in found] == [data for _, data in files(shard)]:
            return None
        if not isinstance(shard, EncodedShard):
            return "expected our bytes, found others, which have no checksum"
        images = [image for path, data in found for image in read_images_of(path, data)]
        if len(images) != len(shard):
            return f"expected {len(shard)} images, found {len(images)}"
        for index, image, ours in zip(shard.index.tolist(), images, shard.images, strict=True):
            if reason := wrong_image(image, ours):
                return f"image {index}: {reason}"
        if [data for _, data in found] != [data for _, data in files(replace(shard, images=images))]:
            return "labels, columns or their layout differ from ours"
    except Exception as error:  # damaged bytes make readers raise anything
        return f"cannot be read: {type(error).__name__}: {error}"
    return None


def wrong_image(found: bytes, ours: bytes) -> str | None:
    """Why an image is not valid instead of ours; None if it is equal, or a whole PNG with our size and provenance."""
    if found == ours:
        return None
    try:
        theirs, expected = read_provenance(found).to_json(), read_provenance(ours).to_json()
    except InputError as error:
        return str(error)
    if theirs != expected:
        return f"expected provenance {expected}, found {theirs}"
    with Image.open(io.BytesIO(found)) as image, Image.open(io.BytesIO(ours)) as own:
        expected, theirs = (f"{each.format} of {each.width} x {each.height} {each.mode}" for each in (own, image))
        if theirs != expected:
            return f"expected a {expected}, found a {theirs}"
        if image.format != "PNG":
            return f"a {image.format} that is not ours may be damaged: it has no checksum"
        image.load()  # checks the pixels
    with Image.open(io.BytesIO(found)) as image:
        image.verify()  # checks the chunks
    return None if PNG_END in found else "a PNG without its end"


def read_checked(store: Store, file: Stored) -> bytes:
    """A file that a manifest entry names. DamagedError if it is not what was committed."""
    try:
        data = store.read(file.path)
    except FileNotFoundError:
        raise DamagedError("missing") from None
    if len(data) != file.size_bytes:
        raise DamagedError(f"expected {file.size_bytes} bytes, found {len(data)}")
    if (found := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise DamagedError(f"expected sha256 {file.sha256}, found {found}")
    return data


@contextmanager
def naming_damage(store: Store, path: str, kind: type[TandemError] = JobError) -> Iterator[None]:
    """Context manager: turns any error of reading a file into one of this kind, with the remedy."""
    try:
        yield
    except TandemError:
        raise
    except Exception as error:
        raise kind(f"{path} in {store.uri} is damaged: {type(error).__name__}: {error}", REPAIR) from error


def read_images_of(path: str, data: bytes) -> list[bytes]:
    """The images in one file of a dataset, in order; none in the table of a folder."""
    if path.endswith(".tar"):
        return [content for _, content in _members(data, SUFFIXES)]
    if path.startswith("shards/"):
        return [image["bytes"] for image in pq.read_table(io.BytesIO(data), columns=["image"])["image"].to_pylist()]
    return [data] if path.startswith("images/") else []


def read_rows(path: str, data: bytes) -> list[tuple[int, int]]:
    """(index, label) of every row in one file of a dataset or of drafts, in order; none in the table of a folder.

    Damaged bytes make readers raise errors of many kinds.
    """
    if path.endswith(".tar"):
        return [(int(name.removesuffix(".cls")), int(content)) for name, content in _members(data, (".cls",))]
    if path.startswith("shards/"):
        table = pq.read_table(io.BytesIO(data), columns=["index", "label"])
        return list(zip(table["index"].to_pylist(), table["label"].to_pylist(), strict=True))
    return [(layout.image_index(path), layout.image_label(path))] if path.startswith("images/") else []


def _members(data: bytes, suffixes: tuple[str, ...]) -> list[File]:
    """Names and content of the members of a tar with these suffixes."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            if member.name.endswith(suffixes):
                content = tar.extractfile(member)
                if content is None:
                    raise ValueError(f"expected a file, found {member.name} of type {member.type!r}")
                found.append((member.name, content.read()))
    return found
