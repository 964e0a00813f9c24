"""Views of pictures: the plain one by a stated rule, the others made again from (seed, index, view) alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tandem.errors import InputError
from tandem.image_folder import decode_image
from tandem.vqvae import to_float
from tandem_workers.training.views import Views, resized

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (30, 44, 3), dtype=np.uint8)


def as_view(pixels):
    return to_float(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))


def test_view_0_is_the_shorter_side_resized_and_the_centre():
    whole = Image.fromarray(PICTURE).resize((23, 16), Image.Resampling.LANCZOS)  # 44 * 16 / 30 = 23.5
    expected = np.asarray(whole)[:, 4:20]  # (23 - 16) / 2 = 3.5, rounded to even as in torchvision
    torch.testing.assert_close(Views(16).of(PICTURE, 5)[0], as_view(expected), rtol=0, atol=0)
    upright = np.asarray(Image.fromarray(PICTURE.transpose(1, 0, 2)).resize((16, 23), Image.Resampling.LANCZOS))[4:20]
    torch.testing.assert_close(Views(16).of(PICTURE.transpose(1, 0, 2), 5)[0], as_view(upright), rtol=0, atol=0)


def test_a_picture_of_the_size_is_kept_and_an_oblong_one_only_cut():
    square = PICTURE[:, :30]
    torch.testing.assert_close(Views(30).of(square, 0)[0], as_view(square), rtol=0, atol=0)
    torch.testing.assert_close(Views(30).of(PICTURE, 0)[0], as_view(PICTURE[:, 7:37]), rtol=0, atol=0)


@pytest.mark.parametrize("augment", ["crop-flip", "crop", "affine"])
def test_a_view_depends_on_seed_index_and_its_number_alone(augment):
    views = Views(16, 6, augment, seed=3)
    made = views.of(PICTURE, 2**32 + 7)
    assert made.shape == (6, 3, 16, 16) and made.dtype == torch.float32 and made.abs().max() <= 1.0001
    torch.manual_seed(1)
    np.random.seed(1)
    views.of(PICTURE[::-1], 8)  # other pictures in between
    torch.testing.assert_close(views.of(PICTURE, 2**32 + 7), made, rtol=0, atol=0)
    fewer = Views(16, 3, augment, seed=3).of(PICTURE, 2**32 + 7)
    torch.testing.assert_close(fewer, made[:3], rtol=0, atol=0)
    torch.testing.assert_close(made[0], Views(16).of(PICTURE, 0)[0], rtol=0, atol=0)
    for other in (Views(16, 6, augment, seed=4).of(PICTURE, 2**32 + 7), views.of(PICTURE, 2**32 + 8)):
        assert not torch.equal(other[1:], made[1:])
    assert len({view.numpy().tobytes() for view in made}) == 6


def test_crops_are_squares_of_a_picture_an_eighth_larger_and_half_of_them_mirrored():
    larger = resized(PICTURE, 18)
    assert larger.shape[0] == 18
    cuts = [larger[top : top + 16, left : left + 16] for top in range(3) for left in range(larger.shape[1] - 15)]
    found = {as_view(cut[:, :: 1 - 2 * mirrored]).numpy().tobytes(): mirrored for cut in cuts for mirrored in (0, 1)}
    plain = [found[view.numpy().tobytes()] for view in Views(16, 40, "crop").of(PICTURE, 1)[1:]]
    flipped = [found[view.numpy().tobytes()] for view in Views(16, 40, "crop-flip").of(PICTURE, 1)[1:]]
    assert not any(plain) and 8 < sum(flipped) < 31


def test_affine_views_move_on_white():
    white = np.full((16, 16, 3), 255, np.uint8)
    torch.testing.assert_close(Views(16, 5, "affine").of(white, 0), torch.ones(5, 3, 16, 16))


def test_a_turned_grey_picture_is_decoded_before_it_is_cut():
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(PICTURE[:, :, 0]).save(out, "PNG", exif=exif)
    turned = decode_image(out.getvalue(), "x.png")
    assert turned.shape == (44, 30, 3)
    assert Views(16).of(turned, 0).shape == (1, 3, 16, 16)


def test_a_strip_is_refused_before_it_becomes_larger_than_the_memory():
    with pytest.raises(InputError, match="expected sides of at most 100 to 1, got 4000 x 2 pixels"):
        Views(16).of(np.zeros((2, 4000, 3), np.uint8), 0)
