"""Source pictures of edits: their token maps, and the cells in which they are drawn anew.

Shapes: B images, L tokens of all scales, h w latent grid, H W pixels.
Source: the editing methods of the published CoDe code: after every scale, f_hat outside the mask is the source's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

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

    def __getitem__(self, rows: slice | Sequence[int]) -> Source:
        """The sources of some of the images."""
        return Source(self.ids_BL[rows], self.drawn_Bhw[rows])


def latent_cells(mask_BHW: Tensor, grid: int, nearest: bool = False) -> Tensor:
    """Cells of the latent grid that a mask of pixels touches: bool [B, h, w].

    Args:
        mask_BHW: pixels to draw anew, bool [B, H, W], H and W multiples of the grid.
        grid: h, the side of the latent grid.
        nearest: take the upper left pixel of each cell alone, as the published code does. Narrow strokes get lost.
    """
    height, width = mask_BHW.shape[1:]
    if height % grid or width % grid:
        raise InputError(f"mask: expected a height and a width that {grid} divides, got {list(mask_BHW.shape)}")
    if nearest:
        return mask_BHW[:, :: height // grid, :: width // grid].clone()
    return F.max_pool2d(mask_BHW.float(), (height // grid, width // grid)).bool()
