"""Sheets for judging by eye: samples of each setting, nearest training pictures, coarse to fine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from tandem.collaborative import decode
from tandem.images import contact_sheet
from tandem.metrics import nearest
from tandem.training.pictures import PictureSet
from tandem.vqvae import Vqvae
from tandem_workers.stages.refiner import to_uint8


def as_images(pixels_n3HW: Tensor) -> list[Image.Image]:
    """uint8 [n, 3, H, W] -> Pillow images."""
    return [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in pixels_n3HW]


def samples_sheet(pixels: Mapping[str, Tensor], classes: Sequence[str]) -> Image.Image:
    """One row per setting, one column per class, the same seeds in a column."""
    cells = [image for rows in pixels.values() for image in as_images(rows)]
    return contact_sheet(cells, [f"{name} {c}" for name in pixels for c in classes], len(classes))


def nearest_sheet(pixels_n3HW: Tensor, train: PictureSet, columns: int) -> Image.Image:
    """Rows of samples, below each row the training pictures nearest to them by pixel distance."""
    _, index = nearest(pixels_n3HW.flatten(1).float(), train.pixels.flatten(1).float())
    cells: list[Image.Image] = []
    captions: list[str] = []
    for start in range(0, len(pixels_n3HW), columns):
        ours, theirs = pixels_n3HW[start : start + columns], train.pixels[index[start : start + columns]]
        cells += as_images(ours) + as_images(theirs)
        captions += ["sample"] * len(ours) + ["nearest picture"] * len(theirs)
    return contact_sheet(cells, captions, columns)


def scales_sheet(vqvae: Vqvae, ids_nL: Tensor, draft_steps: int) -> Image.Image:
    """One row per scale, one column per image, decoded from the token maps up to that scale."""
    pyramid = vqvae.config.pyramid
    cells: list[Image.Image] = []
    captions: list[str] = []
    for scale, size in enumerate(pyramid.patch_nums):
        pixels_nHW3 = to_uint8(decode(vqvae, ids_nL[:, : pyramid.offsets[scale + 1]]))
        cells += [Image.fromarray(pixels) for pixels in pixels_nHW3]
        captions += [f"{'drafter' if scale < draft_steps else 'refiner'} {size} x {size}"] * len(ids_nL)
    return contact_sheet(cells, captions, len(ids_nL))
