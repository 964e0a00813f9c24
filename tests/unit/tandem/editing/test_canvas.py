"""The model's square within a picture of any size."""

import numpy as np
import pytest

from tandem.editing.canvas import Canvas, mixed, weights
from tandem.editing.masks import box_mask
from tandem.errors import InputError

RNG = np.random.default_rng(0)
FITS = ["crop", "pad", "resize"]
SHAPES = [(64, 64), (48, 100), (100, 48), (200, 150), (7, 5)]


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


def small_mask(shape: tuple[int, int]) -> np.ndarray:
    return box_mask((0.4, 0.4, 0.6, 0.6), shape)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pasted_pixels_outside_the_mask_are_the_pictures(fit, shape):
    mask, pixels = small_mask(shape), noise(*shape)
    canvas = Canvas.of(fit, mask, 64)
    assert canvas.square(pixels).shape == (64, 64, 3)
    out = canvas.put_back(noise(64, 64), pixels, mask, "paste")
    assert out.shape == pixels.shape
    assert np.array_equal(out[~mask], pixels[~mask])
    assert not np.array_equal(out[mask], pixels[mask])


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("width", [0, 1, 2, 5, 8])
def test_feathered_pixels_beyond_the_feather_are_the_pictures(fit, width):
    shape = 80, 120
    mask, pixels = small_mask(shape), np.zeros((*shape, 3), np.uint8)
    out = Canvas.of(fit, mask, 64).put_back(np.full((64, 64, 3), 255, np.uint8), pixels, mask, "feather", width)
    near = box_mask((48 - width, 32 - width, 72 + width, 48 + width), shape)
    assert np.array_equal(out[~near], pixels[~near])
    assert (out[mask] == 255).all()
    row = out[40, 72 : 72 + width, 0].astype(int)
    assert (np.diff(row) <= 0).all() and (width < 2 or 255 > row[-1] > 0)


@pytest.mark.parametrize("fit", FITS)
def test_without_blending_all_of_the_square_is_the_models(fit):
    mask, pixels = small_mask((64, 64)), noise(64, 64)
    made = noise(64, 64)
    assert np.array_equal(Canvas.of(fit, mask, 64).put_back(made, pixels, mask, "none"), made)


def test_a_square_of_the_models_size_is_not_resampled():
    pixels, mask = noise(64, 90), small_mask((64, 90))
    assert np.array_equal(Canvas.of("crop", mask, 64).square(pixels), pixels[:, 13:77])


def test_a_padded_square_repeats_the_border():
    pixels = noise(64, 40)
    square = Canvas.of("pad", small_mask((64, 40)), 64).square(pixels)
    assert np.array_equal(square[:, 12:52], pixels)
    assert (square[:, :12] == pixels[:, :1]).all() and (square[:, 52:] == pixels[:, -1:]).all()


@pytest.mark.parametrize(
    ("box", "left"), [((0, 0, 10, 10), 0), ((90, 0, 100, 10), 52), ((30, 0, 40, 10), 26), ((20, 5, 30, 9), 20)]
)
def test_the_crop_moves_to_the_mask(box, left):
    """As little as it must: the middle one of 48 pixels begins at 26."""
    mask = box_mask(box, (48, 100))
    canvas = Canvas.of("crop", mask, 64)
    assert canvas.box == (left, 0, left + 48, 48)


def test_a_mask_that_no_crop_holds_is_refused():
    mask = box_mask((10, 0, 70, 10), (48, 100))
    with pytest.raises(InputError, match=r"expected one within a square of 48 pixels, .* got 60 x 10"):
        Canvas.of("crop", mask, 64)
    for fit in ("pad", "resize"):
        assert Canvas.of(fit, mask, 64).square_mask(mask).any()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_single_pixel_of_a_mask_reaches_the_square(fit, shape):
    for row, column in ((0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 3)):
        mask = np.zeros(shape, bool)
        mask[row, column] = True
        found = Canvas.of(fit, mask, 64).square_mask(mask)
        assert found.shape == (64, 64) and found.any()
    assert Canvas.of(fit, np.ones((64, 64), bool), 64).square_mask(np.ones((64, 64), bool)).all()


def test_the_mask_of_a_square_of_the_models_size_is_the_pictures():
    mask = RNG.random((64, 64)) < 0.1
    assert np.array_equal(Canvas.of("resize", mask, 64).square_mask(mask), mask)


def test_a_seam_is_mixed_in_linear_light():
    half = np.array([0.5])
    black, white = np.zeros((1, 3), np.uint8), np.full((1, 3), 255, np.uint8)
    assert mixed(black, white, half).tolist() == [[188, 188, 188]]  # not 128: half of the light
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    for share in (0.0, 0.3, 1.0):
        assert np.array_equal(mixed(values, values, np.full(256, share)), values)


def test_weights_of_masks_at_the_border_are_one_inside():
    mask = np.zeros((20, 20), bool)
    mask[:6, :6] = True
    found = weights(mask, 4)
    assert (found[mask] == 1).all() and found[0, 9] > 0 == found[0, 10]


def test_unknown_ways_are_refused():
    mask = small_mask((8, 8))
    with pytest.raises(InputError, match="fit: expected one of crop, pad, resize, got 'squeeze'"):
        Canvas.of("squeeze", mask, 8)
    canvas = Canvas.of("crop", mask, 8)
    with pytest.raises(InputError, match="blend: expected one of paste, feather, none, got 'over'"):
        canvas.put_back(noise(8, 8), noise(8, 8), mask, "over")
