"""Which images `tandem edit` makes: of classes, or of a file of edits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tandem.class_names import ClassNames
from tandem.errors import InputError, LabelError
from tandem_jobs.edit_job import EditSpec
from tandem_jobs.edits.edit_rows import edit_rows
from tandem_jobs.options.spec import parse
from tandem_workers.pictures.edit_inputs import open_edit_pictures

CLASSES = ClassNames(("ant", "bee", "cat", "dog")).with_none()
BOX = ["--box", "0,0,1,1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    """Two pictures of dogs and one of a bee."""
    folder = tmp_path_factory.mktemp("pictures")
    for path in ("bee/x.png", "dog/a.png", "dog/b.png"):
        (folder / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / path)
    return str(folder)


def rows(place: str, *argv: str):
    spec = parse(EditSpec, [place, "--out", "o", *argv], "tandem edit")
    return edit_rows(spec, open_edit_pictures(place), 3, CLASSES)


def of_file(place, tmp_path, text: str):
    (tmp_path / "e.csv").write_text(text)
    return rows(place, "--labels", str(tmp_path / "e.csv"))


def columns(found) -> dict[str, list]:
    return {name: column.to_pylist() for name, column in found.carried(range(len(found))).items()}


def test_each_picture_gets_each_class_and_each_of_them_n_images(place):
    found = rows(place, *BOX, "--label", "cat,none", "--n", "2")
    assert found.label.tolist() == [2, 2, 4, 4] * 3
    assert columns(found) == {"picture_index": [0] * 4 + [1] * 4 + [2] * 4}


def test_own_is_the_class_of_the_folder_and_all_does_without_none(place):
    assert rows(place, *BOX, "--label", "own").label.tolist() == [1, 3, 3]
    assert rows(place, *BOX, "--label", "all").label.tolist() == [0, 1, 2, 3] * 3


def test_a_file_names_pictures_by_number_or_path_and_has_boxes_and_columns(place, tmp_path):
    text = 'picture,class_name,count,box,why\ndog/b.png,none,2,,x\n0,ant,1,"0,0,8,8;0.5,0.5,1,1",y\n'
    found = of_file(place, tmp_path, text)
    assert found.label.tolist() == [4, 4, 0]
    boxes = [None, None, "0,0,8,8;0.5,0.5,1,1"]
    assert columns(found) == {"box": boxes, "why": ["x", "x", "y"], "picture_index": [2, 2, 0]}


def test_a_file_without_pictures_has_a_row_for_each(place, tmp_path):
    assert columns(of_file(place, tmp_path, "label,box\n0,\n1,\n2,\n"))["picture_index"] == [0, 1, 2]
    with pytest.raises(LabelError, match=r"a column 'picture', or a row for each of the 3 pictures, got 2 rows"):
        of_file(place, tmp_path, "label,box\n0,\n1,\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("picture,label\n3,0\n", r"row 1: picture: expected a number from 0 to 2 of .* or a path below it, got '3'"),
        ("picture,label\ncat/a.png,0\n", r"row 1: picture: expected a number .* got 'cat/a.png'"),
        ('picture,label,box\n0,0,"1,2,3"\n', r"row 1: box: expected x0,y0,x1,y1, got '1,2,3'"),
        ("picture,label\n0,5\n", r"row 1: expected labels 0 to 4, got 5"),
        ("picture_index,label\n0,0\n", r"column 'picture_index': this name is the dataset's own"),
    ],
)
def test_a_wrong_row_is_named(place, tmp_path, text, expected):
    with pytest.raises(LabelError, match=expected):
        of_file(place, tmp_path, text)


def test_a_class_called_none_keeps_its_name():
    assert list(ClassNames(("none", "ant")).with_none()) == ["none", "ant", "no class"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--label", "ant"], "expected --mask, --masks, --box, --expand or --labels"),
        (BOX, "expected --label or --labels"),
        (
            [*BOX, "--mask", "m.png", "--label", "ant"],
            "one of --mask, --masks and --box, got --mask and --box",
        ),
        ([*BOX, "--label", "ant", "--labels", "e.csv"], "expected --label or --labels, got both"),
        ([*BOX, "--labels", "e.csv", "--n", "2"], "expected no --n with --labels"),
        (["--box", "0,0,0,1", "--label", "ant"], "--box: expected 0 <= x0 < x1"),
        (["--expand", "1,2", "--label", "ant"], "--expand: expected LEFT,TOP,RIGHT,BOTTOM, got '1,2'"),
        ([*BOX, "--label", "ant", "--blend", "paste", "--feather", "3"], "expected --blend feather with --feather"),
    ],
)
def test_options_that_do_not_go_together_are_refused(place, argv, expected):
    with pytest.raises(InputError) as raised:
        parse(EditSpec, [place, "--out", "o", *argv], "tandem edit")
    assert expected in str(raised.value)


def test_margins_let_the_square_hold_all_of_the_picture():
    assert parse(EditSpec, ["a.png", "--out", "o", "--label", "ant", *BOX], "").chosen_fit == "crop"
    assert parse(EditSpec, ["a.png", "--out", "o", "--label", "ant", "--expand", "1,0,0,0"], "").chosen_fit == "pad"


def test_own_needs_class_folders(tmp_path):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(LabelError, match=r"--label own: expected class folders of images, .* is image folder"):
        rows(str(tmp_path), *BOX, "--label", "own")
