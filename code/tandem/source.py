"""Source pictures of edits: their token maps, and the cells in which they are drawn anew.

Shapes: B images, L tokens of all scales, h w latent grid, H W pixels.
Source: the editing methods of the published CoDe code: after every scale, f_hat outside the mask is the source's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.checks import check_ids, describe
from tandem.config import Pyramid
from tandem.errors import InputError


@dataclass(frozen=True)
class Source:
    """What a batch of edits keeps of its source pictures.

    Attributes:
        ids_BL: token ids of the sources at all scales, int64 [B, L], as `Vqvae.encode` gives them.
        drawn_Bhw: latent cells that are drawn anew, bool [B, h, w]; the others keep the source. Where all are, the
            image is the one without a source, and its ids do not matter.
    """

    ids_BL: Tensor
    drawn_Bhw: Tensor

    def check(self, pyramid: Pyramid, vocab_size: int, batch_B: Tensor) -> None:
        """Raises InputError unless it fits a batch of as many images on the same device."""
        check_ids(pyramid, vocab_size, self.ids_BL)
        batch, grid = len(batch_B), pyramid.grid
        if self.ids_BL.shape != (batch, pyramid.num_tokens):
            raise InputError(f"source: expected ids [{batch}, {pyramid.num_tokens}], got {describe(self.ids_BL)}")
        right = isinstance(self.drawn_Bhw, Tensor) and self.drawn_Bhw.dtype == torch.bool
        if not right or self.drawn_Bhw.shape != (batch, grid, grid):
            raise InputError(f"source: expected cells bool [{batch}, {grid}, {grid}], got {describe(self.drawn_Bhw)}")
        for value in (self.ids_BL, self.drawn_Bhw):
            if value.device != batch_B.device:
                raise InputError(f"source: expected the device of the batch, {batch_B.device}, got {value.device}")


def latent_cells(mask_BHW: Tensor, grid: int, nearest: bool = False) -> Tensor:
    """Cells of the latent grid that a mask of pixels touches: bool [B, h, w].

    Args:
        mask_BHW: pixels to draw anew, bool [B, H, W], H and W multiples of the grid.
        grid: h, the side of the latent grid.
        nearest: take the upper left pixel of each cell alone, as the published code does. Narrow strokes get lost.
    """
    height, width = mask_BHW.shape[1:]
    if height % grid or width % grid:
        raise InputError(f"mask: expected a height and a width that {grid} divides, got {describe(mask_BHW)}")
    if nearest:
        return mask_BHW[:, :: height // grid, :: width // grid].clone()
    return F.max_pool2d(mask_BHW.float(), (height // grid, width // grid)).bool()
