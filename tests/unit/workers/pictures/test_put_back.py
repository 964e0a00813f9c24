"""What a made square makes of its picture."""

import numpy as np
import pytest

from tandem.editing.canvas import Canvas
from tandem.editing.masks import Picture
from tandem_workers.pictures.edit_pictures import EditPicture
from tandem_workers.pictures.put_back import PutBack


@pytest.mark.parametrize(("blend", "opaque"), [("paste", 8), ("feather", 8), ("none", 64)])
def test_alpha_is_opaque_where_pixels_were_made(blend, opaque):
    """A transparent picture of 12 x 8 pixels, whose square is its middle, with 8 masked ones."""
    pixels, mask = np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), bool)
    mask[3:5, 4:8] = True
    picture = Picture(pixels, np.full_like(pixels, 255), np.zeros((8, 12), np.uint8))
    found = EditPicture("image", picture, mask, Canvas.of("crop", mask, 4), "0" * 64)
    made = PutBack(blend).whole(np.full((4, 4, 3), 9, np.uint8), found, "png")
    assert made.shape == (8, 12, 4) and (made[..., 3] == 255).sum() == opaque
    assert (made[mask] == (9, 9, 9, 255)).all()
    assert PutBack(blend).whole(np.full((4, 4, 3), 9, np.uint8), found, "jpeg").shape == (8, 12, 3)
