"""Messages between the deployments of the endpoint. No torch here: the ingress does not import it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.config import SamplingConfig
from tandem.editing.canvas import Fit
from tandem.images import Codec
from tandem_workers.pictures.edit_pictures import EditPicture
from tandem_workers.pictures.put_back import PutBack


@dataclass(frozen=True, eq=False)
class Edit:
    """What an edit begins with. No two are equal.

    Attributes:
        found: the picture, its mask, and where the model's square lies.
        square, square_mask: the model's view of both: uint8 [S, S, 3], bool [S, S].
        fit: how the square was chosen.
        put_back: how it comes back into the picture.
        keep_scales: scales whose ids stay those of the picture within the mask, too.
    """

    found: EditPicture
    square: NDArray[np.uint8]
    square_mask: NDArray[np.bool_]
    fit: Fit
    put_back: PutBack
    keep_scales: int = 0

    @classmethod
    def of(cls, found: EditPicture, fit: Fit, put_back: PutBack, keep_scales: int) -> Edit:
        square, mask = found.canvas.square(found.picture.shown), found.canvas.square_mask(found.mask)
        return cls(found, square, mask, fit, put_back, keep_scales)

    @cached_property
    def about(self) -> dict[str, Any]:
        """For the provenance of its files, and for answers."""
        return self.put_back.about(self.found, self.fit)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        height, width = self.found.mask.shape
        return width, height


@dataclass(frozen=True)
class ImageRequest:
    """One checked request: n images of one class. Image i equals that with index i of a job with this seed.

    Attributes:
        draft_steps: N from 0 to K; 0: the refiner alone, K: the drafter alone.
        preview_scales: numbers of scales after which a preview is sent, each from 1 to K - 1.
        size: width and height in pixels that files are brought to; None: the model's.
        deterministic: decode alone, in batches of one fixed shape.
        edit: the picture of which these are edits; None: they are drawn from nothing.
    """

    label: int
    seed: int
    n: int
    draft_steps: int
    sampling: SamplingConfig
    codec: Codec = "png"
    quality: int = 92
    deterministic: bool = False
    preview_scales: frozenset[int] = frozenset()
    size: tuple[int, int] | None = None
    edit: Edit | None = None

    @property
    def kept_scales(self) -> int:
        """Scales that are not drawn at all."""
        return self.edit.keep_scales if self.edit else 0

    @property
    def picture_pixels(self) -> int:
        """Pixels of the picture that is edited."""
        return self.edit.found.mask.size if self.edit else 0


@dataclass(frozen=True)
class Drafted:
    """From a drafter to a refiner.

    Attributes:
        tokens: ids of the first `draft_steps` scales, uint16 [n, L']; L' is 0 where the drafter had nothing to draw.
        seconds: of the stages so far.
        source: ids of the picture that is edited, uint16 [L], if the drafter has encoded it.
    """

    request: ImageRequest
    tokens: NDArray[np.uint16]
    seconds: dict[str, float]
    source: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class Preview:
    """A preview as an image file, decoded from the first `scale` scales."""

    image: int
    scale: int
    made_by: str
    data: bytes


@dataclass(frozen=True)
class Pictures:
    """The n image files of a request, and the seconds of each stage, without the wait for a batch."""

    files: list[bytes]
    seconds: dict[str, float] = field(default_factory=dict)
