"""Classifier-free guidance of a batch: how strong at which scale, and which images have a second row for it.

An image has a row without its class as long as its guidance is above 0 at this or a later scale of the decode. These
rows follow those of all images, longest needed first, so that rows that have served come last and are dropped.

Shapes: B images, G rows without a class, R = B + G rows, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tandem.config import SamplingConfig
from tandem.transfers import upload


def guided_images(strengths: Sequence[Sequence[float]], start: int, stop: int) -> list[list[int]]:
    """For each scale of a decode from `start` to `stop`, the images that have a row without their class, in the order
    of these rows. `strengths`: those of each image at all K scales."""
    until = [max((k + 1 for k in range(start, stop) if strength[k] > 0), default=start) for strength in strengths]
    order = sorted(range(len(strengths)), key=lambda image: -until[image])
    return [[image for image in order if until[image] > scale] for scale in range(start, stop)]


def rows_of_scales(sampling: Sequence[SamplingConfig], num_scales: int, start: int, stop: int) -> list[int]:
    """R at each scale of a decode from `start` to `stop`, with a setting for each image."""
    strengths = [config.strengths(num_scales) for config in sampling]
    return [len(strengths) + len(images) for images in guided_images(strengths, start, stop)]


@dataclass(frozen=True)
class Guidance:
    """Guidance of one decode in which some image has any.

    Attributes:
        strength_KB: float32 [K, B].
        image_R: int64 [R], the image of each row of the first scale.
        partner_SB: int64 [S, B], at each of S scales of the decode the row without a class of each image; where it has
            none, its only row.
        rows: R at each scale of the decode.
        start: its first scale.
    """

    strength_KB: Tensor
    image_R: Tensor
    partner_SB: Tensor
    rows: tuple[int, ...]
    start: int

    @classmethod
    def of(
        cls, sampling: Sequence[SamplingConfig], num_scales: int, start: int, stop: int, device: torch.device
    ) -> Guidance | None:
        """None if no image has any. InputError for strengths of another number of scales."""
        strengths = [config.strengths(num_scales) for config in sampling]
        images = guided_images(strengths, start, stop)
        if not images[0]:
            return None
        batch = len(sampling)
        partners = [{image: row for row, image in enumerate(some, batch)} for some in images]
        return cls(
            upload(torch.tensor(strengths).T.contiguous(), device),
            upload(torch.tensor([*range(batch), *images[0]]), device),
            upload(torch.tensor([[found.get(i, i) for i in range(batch)] for found in partners]), device),
            tuple(batch + len(some) for some in images),
            start,
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.strength_KB, self.image_R, self.partner_SB

    def with_tensors(self, strength_KB: Tensor, image_R: Tensor, partner_SB: Tensor) -> Guidance:
        """The same, by other tensors of equal values."""
        return replace(self, strength_KB=strength_KB, image_R=image_R, partner_SB=partner_SB)

    def spread(self, x_BlC: Tensor, scale: int) -> Tensor:
        """Rows [R, l, C] of a scale from what its images have in common."""
        return x_BlC[self.image_R[: self.rows[scale - self.start]]]

    def at(self, scale: int) -> ScaleGuidance | None:
        """None where no image has a row without its class."""
        number = scale - self.start
        if self.rows[number] == self.partner_SB.shape[1]:
            return None
        return ScaleGuidance(self.strength_KB[scale], self.partner_SB[number])


@dataclass(frozen=True)
class ScaleGuidance:
    """Guidance at one scale. strength_B: float32 [B]. partner_B: int64 [B], see `Guidance`."""

    strength_B: Tensor
    partner_B: Tensor

    def pairs(self, some: slice) -> Tensor:
        """Rows of the images `some`, and after them their partners: int64 [2 b]."""
        own = torch.arange(some.start, some.stop, device=self.partner_B.device)
        return torch.cat([own, self.partner_B[some]])
