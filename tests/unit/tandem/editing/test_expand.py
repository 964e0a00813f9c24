"""Pictures with margins that are drawn anew."""

import numpy as np
import pytest

from tandem.editing.expand import expanded, parse_margins
from tandem.editing.masks import Picture
from tandem.errors import InputError

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_margins_are_masked_and_the_picture_stays_as_it_is():
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = True
    alpha = np.full((4, 6), 7, np.uint8)
    grown, larger = expanded(Picture(PIXELS, PIXELS, alpha), mask, (2, 0, 3, 1))
    assert grown.pixels.shape == (5, 11, 3) and larger.shape == (5, 11)
    np.testing.assert_array_equal(grown.pixels[:4, 2:8], PIXELS)
    np.testing.assert_array_equal(larger[:4, 2:8], mask)
    assert larger[:, :2].all() and larger[:, 8:].all() and larger[4].all()
    assert (grown.pixels[:4, 0] == PIXELS[:, 0]).all()  # the border goes on into the margin
    assert grown.alpha[4].tolist() == [255] * 11 and (grown.alpha[:4, 2:8] == 7).all()


def test_margins_up_to_1_are_shares_of_width_and_height():
    grown, _ = expanded(Picture(PIXELS, PIXELS), np.zeros((4, 6), bool), (0.5, 1, 0, 0))
    assert grown.pixels.shape == (8, 9, 3)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,x", "0,0,0,0", "-1,0,0,0", "nan,0,0,1"])
def test_other_margins_are_refused(text):
    with pytest.raises(InputError, match=r"expand: expected .*, got "):
        parse_margins(text)


def test_a_picture_grows_at_most_fourfold():
    with pytest.raises(InputError, match=r"a.png: expected margins .* 6 x 4 pixels at most 4 times .*, got 26 x 4"):
        expanded(Picture(PIXELS, PIXELS), np.zeros((4, 6), bool), parse_margins("20,0,0,0"), "a.png")
