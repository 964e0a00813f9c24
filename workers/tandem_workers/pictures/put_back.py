"""The way of made pixels back into their pictures. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.editing.canvas import Blend, Fit
from tandem.images import Codec
from tandem_workers.pictures.edit_pictures import EditPicture


@dataclass(frozen=True)
class PutBack:
    """How made pixels come into their pictures; see `Canvas.put_back`."""

    blend: Blend = "feather"
    feather: float | None = None

    def whole(self, pixels_SS3: NDArray[np.uint8], found: EditPicture, codec: Codec) -> NDArray[np.uint8]:
        """The edited picture: uint8 [H, W, 3], or [H, W, 4] if it has alpha and the codec, too. It is opaque where its
        pixels were made: inside the mask, or with "none" in the whole square."""
        picture = found.picture
        alpha_HW = None if codec == "jpeg" else picture.alpha
        pixels_HW3 = picture.shown if alpha_HW is None else picture.pixels
        made_HW3 = found.canvas.put_back(pixels_SS3, pixels_HW3, found.mask, self.blend, self.feather)
        if alpha_HW is None:
            return made_HW3
        opaque_HW = found.mask if self.blend != "none" else found.mask | found.canvas.covered
        return np.dstack([made_HW3, np.where(opaque_HW, 255, alpha_HW).astype(np.uint8)])

    def about(self, found: EditPicture, fit: Fit) -> dict[str, Any]:
        """An edit, for the provenance of its file."""
        return {
            "picture_sha256": found.sha256,
            "mask_sha256": found.mask_sha256,
            "edited_share": round(found.edited_share, 6),
            "fit": fit,
            "blend": self.blend,
        }
