"""`tandem verify --decode`: kept token ids through the VQVAE again, beside the files that they belong to."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tandem.collaborative import decode
from tandem.edit_source import Source
from tandem.errors import CheckpointError, InputError
from tandem.images import Codec, encode_image, read_provenance
from tandem.vqvae import Vqvae, rounded
from tandem_jobs.edits.edit_options import MovedOptions
from tandem_jobs.edits.edit_sources import open_again
from tandem_workers.dataset.columns import as_array
from tandem_workers.dataset.identity import CODEC, EDIT, Identity
from tandem_workers.dataset.token_columns import BOX, DRAWN_CELLS, EDITED, PICTURE_INDEX, SOURCE_TOKENS, TOKENS
from tandem_workers.dataset.verify import START_OVER, Problem
from tandem_workers.models.model_set import Resolved, load_tokenizer, pick_device, resolve
from tandem_workers.pictures.edit_pictures import EditPictures
from tandem_workers.pictures.own_dataset import OwnDataset, open_own_dataset
from tandem_workers.pictures.picture_block import PictureBlock
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.storage.store import Store

BATCH = 16
# Mean difference of an image, in levels of 255, beyond what its codec changes. The embedded VQVAE in float32 is 0.2
# from bfloat16; another image of the same class was 20 or more away, in all pairs of 24.
MOST = 4.0
Pixels = NDArray[np.uint8]


@dataclass
class Decoded:
    """What the ids of some images decode to.

    Attributes:
        images: how many.
        identical: of them, those whose files are made again byte by byte.
        mean, largest: of the images' mean differences from their files, in levels of 255.
        problems: images that differ too much, pictures of edits that have changed.
    """

    images: int = 0
    identical: int = 0
    mean: float = 0.0
    largest: float = 0.0
    problems: list[Problem] = field(default_factory=list)

    def add(self, name: str, apart: float, allowed: float, identical: bool) -> None:
        """Count an image. `allowed`: the largest difference that is no problem."""
        self.mean = (self.mean * self.images + apart) / (self.images + 1)
        self.images, self.largest = self.images + 1, max(self.largest, apart)
        self.identical += identical
        if apart > allowed:
            said = f"{name}: its token ids decode to another image: expected a mean difference of at most {allowed:.1f}"
            self.problems.append(Problem(f"{said} of 255, got {apart:.1f}", START_OVER))


@dataclass(frozen=True)
class KeptIds:
    """A dataset that kept its token ids, and what they decode with.

    Attributes:
        source: the dataset, with columns.
        vqvae: its VQVAE, in float32.
        codec, quality: of its files.
        pictures, put_back: of a dataset of edits, else None.
    """

    source: OwnDataset
    vqvae: Vqvae
    codec: Codec
    quality: int
    pictures: EditPictures | None = None
    put_back: PutBack | None = None

    def decode(self, count: int, progress: Callable[[int], None]) -> Decoded:
        """Decode the ids of `count` images, spread over the dataset (all, if it has no more), and compare.

        `progress` is called with numbers of images.
        """
        decoded = Decoded()
        for block, places in self.chosen(count):
            for start in range(0, len(places), BATCH):
                part = places[start : start + BATCH]
                try:
                    self.compare(block, part, decoded)
                except InputError as error:  # a picture of an edit is gone or has changed
                    decoded.problems.append(Problem(str(error), "put the pictures back that were edited"))
                progress(len(part))
        return decoded

    def chosen(self, count: int) -> Iterator[tuple[PictureBlock, list[int]]]:
        """The blocks that hold some images, spread evenly over all, and their places there."""
        ends = np.cumsum(self.source.rows)
        wanted = np.unique(np.linspace(0, ends[-1] - 1, min(count, ends[-1])).round().astype(int))
        blocks = np.searchsorted(ends, wanted, side="right")
        for block in np.unique(blocks).tolist():
            first = int(ends[block]) - self.source.rows[block]
            yield self.source.read(block), (wanted[blocks == block] - first).tolist()

    def compare(self, block: PictureBlock, places: Sequence[int], decoded: Decoded) -> None:
        """Compare some images with what their ids decode to. Of edits only what was drawn is compared.

        InputError if a picture of an edit is gone or has changed.
        """
        assert block.columns is not None and block.encoded is not None
        ids_BL = torch.from_numpy(as_array(block.columns[TOKENS])[places].astype(np.int64))
        source = self.source_of(block, places) if self.pictures is not None else None
        made: Pixels = rounded(decode(self.vqvae, ids_BL, source)).numpy()
        wholes = ((pixels, None) for pixels in made) if self.pictures is None else self.put_back_in(block, places, made)
        for at, (whole, drawn) in zip(places, wholes, strict=True):
            file = block.encoded[at]
            again = encode_image(whole, self.codec, self.quality, read_provenance(file))
            kept, found = as_rgb(file), as_rgb(again)
            lost = difference(found, whole[..., :3], drawn)  # by the codec
            decoded.add(block.names[at], difference(kept, found, drawn), MOST + lost, file == again)

    def source_of(self, block: PictureBlock, places: Sequence[int]) -> Source:
        """What edits keep of their pictures."""
        assert block.columns is not None
        grid = self.vqvae.config.pyramid.grid
        bits = np.unpackbits(as_array(block.columns[DRAWN_CELLS])[places], axis=1, count=grid * grid).astype(bool)
        ids_BL = torch.from_numpy(as_array(block.columns[SOURCE_TOKENS])[places].astype(np.int64))
        return Source(ids_BL, torch.from_numpy(bits.reshape(-1, grid, grid)))

    def put_back_in(
        self, block: PictureBlock, places: Sequence[int], made_BSS3: Pixels
    ) -> Iterator[tuple[Pixels, NDArray[np.bool_]]]:
        """The edited pictures, and where they were drawn: the mask, with blend "none" the whole square."""
        assert block.columns is not None and self.pictures is not None and self.put_back is not None
        names = [name for name in (PICTURE_INDEX, BOX, *EDITED) if name in block.columns.column_names]
        rows = block.columns.select(names).take(places).to_pydict()
        found = self.pictures.read(rows[PICTURE_INDEX], rows.get(BOX))
        for row, (pixels_SS3, picture) in enumerate(zip(made_BSS3, found, strict=True)):
            picture.check({name: values[row] for name, values in rows.items()})
            drawn = picture.mask | picture.canvas.covered if self.put_back.blend == "none" else picture.mask
            yield self.put_back.whole(pixels_SS3, picture, self.codec), drawn


def open_kept(place: str, store: Store, vqvae: str | None, moved: MovedOptions) -> KeptIds:
    """The dataset at a place, which keeps ids.

    Args:
        place: its address, for errors.
        store: of it.
        vqvae: file, address or name; None: where the job found it.
        moved: where the pictures of edits are now.

    Raises InputError for a dataset that is not complete, or whose VQVAE or pictures are not found.
    """
    source = replace(open_own_dataset(place, store), with_columns=True)
    identity, info = Identity(source.record["identity"]), source.record["info"]
    found = find_vqvae(vqvae, identity, info)
    patch_nums = tuple(info.get("patch_nums", found.config.patch_nums))
    model = load_tokenizer(found.ref, patch_nums, torch.float32, pick_device(False))
    kept = KeptIds(source, model, identity.fields[CODEC], identity.fields["quality"] or 100)  # png leaves it unused
    if not identity.edits:
        return kept
    pictures = open_again(info.get(EDIT), moved, model.config.image_size, "--decode").pictures
    how = identity.fields[EDIT]
    return replace(kept, pictures=pictures, put_back=PutBack(how["blend"], how["feather"]))


def find_vqvae(asked: str | None, identity: Identity, info: Mapping[str, Any]) -> Resolved:
    """The VQVAE of a dataset. InputError for another one."""
    where = asked or str(info.get("sources", info["weights"])["vqvae"])
    expected = identity.weights["vqvae"]
    try:
        found = resolve("vqvae", where, random_weights=True)  # that is, if it is a preset
        if found.ref.sha256 != expected:
            found = resolve("vqvae", where, random_weights=False)
    except CheckpointError as error:
        raise InputError(str(error), error.hint if asked else "--vqvae says where it is") from None
    if found.ref.sha256 != expected:
        raise InputError(f"--vqvae: expected the dataset's, sha256 {expected}, got {where}, {found.ref.sha256}")
    return found


def as_rgb(data: bytes) -> Pixels:
    """The pixels of a file: uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def difference(one: Pixels, other: Pixels, mask: NDArray[np.bool_] | None) -> float:
    """Mean difference in levels, in a mask if there is one: 0 in an empty one, 255 for pictures of different sizes."""
    if one.shape != other.shape:
        return 255.0
    apart = np.abs(one.astype(np.int16) - other.astype(np.int16))
    inner = apart if mask is None else apart[mask]
    return float(inner.mean()) if inner.size else 0.0
