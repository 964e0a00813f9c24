"""Pictures of edits with their masks, from every kind of place."""

import io

import numpy as np
import pytest
from PIL import Image

from tandem.editing.masks import parse_boxes
from tandem.errors import InputError
from tandem_workers.pictures.edit_inputs import match_masks, open_edit_pictures
from tandem_workers.pictures.edit_pictures import EditPictures
from tandem_workers.pictures.picture_block import NO_LABEL
from tandem_workers.pictures.read_ahead import count_pictures

SIZES = [(16, 16), (24, 20), (20, 30)]  # width, height


def saved(path, size, seed, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Three pictures of different sizes without class folders, and masks of a corner each, of other suffixes."""
    for number, size in enumerate(SIZES):
        saved(tmp_path / f"pictures/{number}.png", size, number)
        mask = np.zeros(size[::-1], np.uint8)
        mask[: number + 1, :2] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{number}.bmp")
    return tmp_path


def opened(place, **more):
    source = open_edit_pictures(str(place))
    return EditPictures(source, tuple(count_pictures(source)), 16, **more)


def test_a_folder_without_classes_has_its_files_in_order_and_no_labels(folder):
    found = opened(folder / "pictures", boxes=parse_boxes("0,0,0.5,0.5"))
    assert len(found) == 3 and [label for _, label in found.source.files] == [NO_LABEL] * 3
    made = list(found.read([2, 0, 0, 1]))
    assert [each.name for each in made] == ["2.png", "0.png", "0.png", "1.png"]
    assert made[1] is made[2]  # decoded once
    assert [each.picture.pixels.shape[:2] for each in made] == [(30, 20), (16, 16), (16, 16), (20, 24)]
    assert [each.edited_share for each in made] == [0.25] * 4


def test_masks_of_a_folder_go_by_path_whatever_their_suffix(folder):
    pictures, masks = (open_edit_pictures(str(folder / name)) for name in ("pictures", "masks"))
    found = opened(folder / "pictures", masks=match_masks(masks, pictures), mask_counts=(3,))
    assert [int(each.mask.sum()) for each in found.read([0, 1, 2])] == [2, 4, 6]
    (folder / "masks/1.bmp").unlink()
    with pytest.raises(InputError, match=r"a mask for every picture, .* has none for 1 of 3, such as 1.png"):
        match_masks(open_edit_pictures(str(folder / "masks")), pictures)


def test_the_boxes_of_a_row_come_before_those_of_the_job_and_hashes_tell_masks_apart(folder):
    found = opened(folder / "pictures", boxes=parse_boxes("0,0,1,1"))
    own, common, again = found.read([0, 0, 0], ["0,0,4,4;8,8,16,16", None, "0,0,1,1"])
    assert [int(each.mask.sum()) for each in (own, common)] == [16 + 64, 256]
    assert own.mask_sha256 != common.mask_sha256 == again.mask_sha256
    assert own.sha256 == common.sha256


@pytest.mark.parametrize("kind", ["npz", "file", "classes"])
def test_other_places(folder, kind):
    place = {"npz": folder / "a.npz", "file": folder / "pictures/1.png", "classes": folder / "tree"}[kind]
    if kind == "npz":
        np.savez(place, arr_0=np.zeros((2, 16, 16, 3), np.uint8))
    saved(folder / "tree/cat/0.png", (16, 16), 0)
    saved(folder / "tree/dog/1.png", (16, 16), 1)
    found = opened(place, boxes=parse_boxes("0,0,1,1"), fit="resize")
    assert len(found) == {"npz": 2, "file": 1, "classes": 2}[kind]
    assert next(found.read([len(found) - 1])).mask.all()


def test_a_mask_that_no_square_in_the_picture_holds_is_named(folder):
    with pytest.raises(InputError, match=r"1.png: mask: expected one within a square of 20 pixels, .* got 24 x 20"):
        list(opened(folder / "pictures/1.png", boxes=parse_boxes("0,0,1,1")).read([0]))


def test_margins_come_before_the_square_is_chosen(folder):
    (made,) = opened(folder / "pictures", fit="pad", margins=(0.5, 0, 0.5, 0)).read([0])
    assert made.mask.shape == (16, 32) and made.edited_share == 0.5
    assert made.canvas.box == (0, -8, 32, 24)


def test_what_cannot_be_edited_is_named(folder, tmp_path):
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    for name, data, expected in [
        ("a.gif", out.getvalue(), "a.gif: expected a still picture, got several frames"),
        ("b.png", b"no image", "b.png: not an image, despite its name"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=expected):
            list(opened(tmp_path / name, boxes=parse_boxes("0,0,1,1")).read([0]))
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "c.png")
    with pytest.raises(InputError, match=r"c.png: expected 8 bits a channel, got mode I;16"):
        list(opened(tmp_path / "c.png", boxes=parse_boxes("0,0,1,1")).read([0]))
    mask = ("m.png", (folder / "masks/2.bmp").read_bytes())
    with pytest.raises(InputError, match=r"m.png: expected a mask of the picture's size, 16 x 16, got 20 x 30"):
        list(opened(folder / "pictures/0.png", mask_file=mask).read([0]))
    with pytest.raises(InputError, match=r"expected a picture at .*none.png, there is nothing"):
        open_edit_pictures(str(tmp_path / "none.png"))
