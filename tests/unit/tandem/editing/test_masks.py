"""Pictures and masks of edits, as people give them."""

import io

import numpy as np
import pytest
from PIL import Image

from tandem.editing.masks import bounds, box_mask, parse_box, read_mask, read_picture
from tandem.errors import InputError


def png(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def test_of_an_alpha_channel_alpha_alone_counts():
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = 255, 255, 255, 255  # white, and kept
    pixels[0, 1:, 3] = 0, 127
    pixels[1, :, 3] = 128, 255, 255
    mask = read_mask(png(Image.fromarray(pixels)), "mask.png", (2, 3))
    assert mask.tolist() == [[False, True, True], [False, False, False]]


def test_without_alpha_light_pixels_are_drawn_anew():
    mask = read_mask(png(Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))), "mask.png", (1, 4))
    assert mask.tolist() == [[False, False, True, True]]
    palette = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("RGB").quantize(2)
    assert read_mask(png(palette), "mask.png", (1, 2)).tolist() == [[False, True]]


def test_a_picture_keeps_its_colours_under_transparency_and_is_shown_on_white():
    pixels = np.array([[[10, 20, 30, 0], [40, 50, 60, 255]]], np.uint8)
    picture = read_picture(png(Image.fromarray(pixels)), "a.png")
    assert picture.pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert picture.shown.tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert picture.alpha.tolist() == [[0, 255]]
    plain = read_picture(png(Image.fromarray(pixels[..., :3])), "a.png")
    assert plain.alpha is None and plain.pixels is plain.shown


def test_pictures_and_masks_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    image = Image.fromarray(np.array([[0, 255, 255]], np.uint8))
    assert read_picture(png(image, exif=exif), "a.png").pixels.shape == (3, 1, 3)
    assert read_mask(png(image, exif=exif), "mask.png", (3, 1)).tolist() == [[False], [True], [True]]


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(np.full((2, 2), value, np.uint8)) for value in (0, 255)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not an image"),
        (animated(), "expected a still picture, got several frames"),
        (png(Image.fromarray(np.zeros((2, 2), np.uint16))), "expected 8 bits a channel, got mode I;16"),
        (png(Image.new("1", (10_000, 10_000))), "expected at most 89478485 pixels, got 10000 x 10000"),
    ],
)
def test_what_is_no_still_picture_of_8_bits_is_refused(data, message):
    for read in (lambda: read_picture(data, "file.png"), lambda: read_mask(data, "file.png", (2, 2))):
        with pytest.raises(InputError, match=f"^file.png: {message}"):
            read()


def test_a_mask_of_another_size_is_refused():
    mask = png(Image.fromarray(np.zeros((3, 5), np.uint8)))
    with pytest.raises(InputError, match="expected a mask of the picture's size, 4 x 3, got 5 x 3"):
        read_mask(mask, "mask.png", (3, 4))


def test_boxes_are_in_pixels_or_shares():
    assert bounds(box_mask(parse_box("1,2,3,4"), (10, 10))) == (1, 2, 3, 4)
    assert bounds(box_mask(parse_box("0.1, 0.2, 0.35, 1"), (10, 20))) == (2, 2, 7, 10)
    assert bounds(box_mask((0, 0, 1, 1), (10, 20))) == (0, 0, 20, 10)
    assert bounds(np.zeros((3, 3), bool)) is None


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,x", "3,2,1,4", "0,0,0,4", "-1,0,2,2", "0,0,nan,2", "0,0,inf,2"])
def test_what_is_no_box_is_refused(text):
    with pytest.raises(InputError, match=r"box: expected "):
        parse_box(text)


def test_a_box_outside_the_picture_is_refused():
    with pytest.raises(InputError, match="expected one within 20 x 10 pixels, got 21 x 4"):
        box_mask((0, 0, 21, 4), (10, 20))
