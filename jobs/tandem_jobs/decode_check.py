"""`tandem verify --decode`: kept token ids through the VQVAE again, beside the images that they belong to."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from tandem.collaborative import decode
from tandem.edit_source import Source
from tandem.errors import CheckpointError, InputError
from tandem.images import Codec, encode_image, read_provenance
from tandem.vqvae import Vqvae, rounded
from tandem_jobs.edits.edit_options import PictureOptions
from tandem_jobs.edits.edit_sources import open_sources
from tandem_workers.dataset.identity import CODEC, EDIT, Identity
from tandem_workers.dataset.token_columns import BOX, DRAWN_CELLS, PICTURE_INDEX, SOURCE_TOKENS, TOKENS, as_array
from tandem_workers.dataset.verify import START_OVER, Problem
from tandem_workers.models.model_set import Resolved, load_tokenizer, pick_device, resolve
from tandem_workers.pictures.edit_pictures import EditPictures
from tandem_workers.pictures.own_dataset import OwnDataset, open_own_dataset
from tandem_workers.pictures.picture_block import PictureBlock
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.storage.places import open_store

BATCH = 16
# Mean difference of an image in levels of 255. The embedded VQVAE in float32 is 0.2 from bfloat16; another image of the
# same class was 20 or more away, in all pairs of 24.
MOST = 4.0


class Compared(NamedTuple):
    """An image beside its file."""

    identical: bool
    difference: float


@dataclass
class Decoded:
    """What the ids of some images decode to. `identical`: to the bytes of their files. Differences are in levels of
    255, of the mean over an image."""

    images: int = 0
    identical: int = 0
    mean: float = 0.0
    largest: float = 0.0
    problems: list[Problem] = field(default_factory=list)

    def add(self, name: str, compared: Compared) -> None:
        difference = compared.difference
        self.mean = (self.mean * self.images + difference) / (self.images + 1)
        self.images, self.largest = self.images + 1, max(self.largest, difference)
        self.identical += compared.identical
        if difference > MOST:
            said = f"{name}: its token ids decode to another image: expected a mean difference of at most {MOST:g} of "
            self.problems.append(Problem(f"{said}255, got {difference:.1f}", START_OVER))


@dataclass(frozen=True)
class Files:
    """How the files of a dataset are encoded."""

    codec: Codec
    quality: int

    def compare(self, file: bytes, made: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> Compared:
        """A file and the pixels that should be in it, which are encoded for it; in a mask alone if there is one.
        InputError for a file without provenance."""
        again = encode_image(made, self.codec, self.quality, read_provenance(file))
        one, other = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16) for data in (file, again))
        if one.shape != other.shape:
            return Compared(False, 255.0)
        apart = np.abs(one - other)
        inner = apart if mask is None else apart[mask]
        return Compared(file == again, float(inner.mean()) if inner.size else 0.0)


@dataclass(frozen=True)
class Edits:
    """How the images of a dataset of edits came to be."""

    pictures: EditPictures
    put_back: PutBack


@dataclass(frozen=True)
class Kept:
    """A dataset that kept its token ids, and what they decode with. `edits` is None for images of classes."""

    source: OwnDataset
    vqvae: Vqvae
    files: Files
    edits: Edits | None

    def decode(self, count: int, progress: Callable[[int], None]) -> Decoded:
        """Decode the ids of `count` images, spread over the dataset (all, if it has no more), and compare.

        `progress` is called with numbers of images. InputError for pictures of edits that have changed.
        """
        decoded = Decoded()
        for block, places in chosen(self.source, count):
            for start in range(0, len(places), BATCH):
                part = places[start : start + BATCH]
                for at, each in zip(part, self.compare(block, part), strict=True):
                    decoded.add(block.names[at], each)
                progress(len(part))
        return decoded

    def compare(self, block: PictureBlock, places: Sequence[int]) -> Iterator[Compared]:
        """Images beside what their ids decode to."""
        if self.edits is not None:
            return edited(block, places, self.vqvae, self.files, self.edits)
        return generated(block, places, self.vqvae, self.files)


def open_kept(place: str, vqvae: str | None) -> Kept:
    """The dataset at a place. `vqvae`: file, address or name; None: where the job found it.

    Raises InputError for a dataset without ids, or whose VQVAE or pictures are not found.
    """
    source = replace(open_own_dataset(place, open_store(place)), with_columns=True)
    identity, info = Identity(source.record["identity"]), source.record["info"]
    if not identity.fields.get("keep_tokens"):
        raise InputError(f"--decode: {place} kept no token ids", "--keep-tokens of the job keeps them")
    found = find_vqvae(vqvae, identity, info)
    patch_nums = tuple(info.get("patch_nums", found.config.patch_nums))
    model = load_tokenizer(found.ref, patch_nums, torch.float32, pick_device(False))
    files = Files(identity.fields[CODEC], identity.fields["quality"] or 100)  # a codec without quality leaves it unused
    edits = find_edits(place, identity, info, model.config.image_size) if identity.edits else None
    return Kept(source, model, files, edits)


def find_vqvae(asked: str | None, identity: Identity, info: Mapping[str, Any]) -> Resolved:
    """The VQVAE of a dataset. InputError for another one."""
    where = asked or str(info["weights"]["vqvae"])
    try:
        found = resolve("vqvae", where, False)
    except CheckpointError as error:
        raise InputError(str(error), error.hint if asked else "--vqvae says where it is") from None
    expected = identity.weights["vqvae"]
    if found.ref.sha256 != expected:
        raise InputError(f"--vqvae: expected the dataset's, sha256 {expected}, got {where}, {found.ref.sha256}")
    return found


def find_edits(place: str, identity: Identity, info: Mapping[str, Any], side: int) -> Edits:
    """The pictures of a dataset of edits, and how its images were put back. InputError if the pictures are gone."""
    how = identity.fields[EDIT]
    try:
        options = PictureOptions.model_validate(info.get(EDIT))
    except ValidationError:
        raise InputError(f"--decode: job.json in {place} does not say where the pictures are that it edits") from None
    return Edits(open_sources(options, side).pictures, PutBack(how["blend"], how["feather"]))


def chosen(source: OwnDataset, count: int) -> Iterator[tuple[PictureBlock, list[int]]]:
    """The blocks that hold some images, spread evenly over all, and their places there."""
    ends = np.cumsum(source.rows)
    wanted = np.unique(np.linspace(0, ends[-1] - 1, min(count, ends[-1])).round().astype(int))
    blocks = np.searchsorted(ends, wanted, side="right")
    for block in np.unique(blocks).tolist():
        first = int(ends[block]) - source.rows[block]
        yield source.read(block), (wanted[blocks == block] - first).tolist()


def generated(block: PictureBlock, places: Sequence[int], vqvae: Vqvae, files: Files) -> Iterator[Compared]:
    """Each image beside what its ids decode to."""
    assert block.encoded is not None
    for at, made in zip(places, pixels_of(block, places, vqvae), strict=True):
        yield files.compare(block.encoded[at], made)


def edited(block: PictureBlock, places: Sequence[int], vqvae: Vqvae, files: Files, edits: Edits) -> Iterator[Compared]:
    """The same for edits, where they were drawn. InputError for a picture that has changed."""
    assert block.columns is not None and block.encoded is not None
    grid = vqvae.config.pyramid.grid
    bits = np.unpackbits(as_array(block.columns[DRAWN_CELLS])[places], axis=1, count=grid * grid).astype(bool)
    ids_BL = torch.from_numpy(as_array(block.columns[SOURCE_TOKENS])[places].astype(np.int64))
    source = Source(ids_BL, torch.from_numpy(bits.reshape(-1, grid, grid)))
    rows = block.columns.take(places).to_pydict()
    found = edits.pictures.read(rows[PICTURE_INDEX], rows.get(BOX))
    made = pixels_of(block, places, vqvae, source)
    for at, pixels_SS3, picture, sha256 in zip(places, made, found, rows["picture_sha256"], strict=True):
        if picture.sha256 != sha256:
            raise InputError(f"{picture.name}: expected the picture that was edited, sha256 {sha256}, got another one")
        whole = edits.put_back.whole(pixels_SS3, picture, files.codec)
        yield files.compare(block.encoded[at], whole, picture.mask)


def pixels_of(
    block: PictureBlock, places: Sequence[int], vqvae: Vqvae, source: Source | None = None
) -> NDArray[np.uint8]:
    """What the ids of some images decode to: uint8 [n, S, S, 3]. InputError for ids that are not the VQVAE's."""
    assert block.columns is not None
    ids_BL = torch.from_numpy(as_array(block.columns[TOKENS])[places].astype(np.int64))
    made: NDArray[np.uint8] = rounded(decode(vqvae, ids_BL, source)).numpy()
    return made
