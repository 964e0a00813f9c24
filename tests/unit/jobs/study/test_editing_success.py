"""`tandem study edits`: boxes on objects, other classes, and edits that are those of the library."""

import numpy as np
import pytest
import torch

from tandem.errors import InputError
from tandem_jobs.cli import main
from tandem_jobs.study.editing_success import EditsSpec, box_masks, changed_outside, drawn, evenly, others, pasted, run
from tandem_jobs.study.subject import Subject


def test_a_box_lies_in_the_middle_of_the_object_and_has_its_share_of_the_area():
    pixels = np.full((2, 16, 16, 3), 255, np.uint8)
    pixels[0, 4:12, 2:10, 1] = 0
    whole, quarter = (box_masks(pixels, area) for area in (1.0, 0.25))
    assert np.argwhere(whole[0]).min(0).tolist() == [4, 2] and np.argwhere(whole[0]).max(0).tolist() == [11, 9]
    assert np.argwhere(quarter[0]).min(0).tolist() == [6, 4] and np.argwhere(quarter[0]).max(0).tolist() == [9, 7]
    assert not whole[1].any()  # nothing there


def test_every_picture_is_edited_to_another_class_and_all_classes_take_their_turn():
    own = torch.tensor([0, 1, 2, 3] * 6)
    other = others(own, 4)
    assert not (own == other).any()
    assert {tuple(pair) for pair in zip(own.tolist(), other.tolist(), strict=True)} >= {(0, 1), (1, 3), (2, 1)}
    assert evenly(torch.tensor([0, 0, 0, 0, 1, 2, 2]), 5).tolist() == [0, 1, 4, 5, 6]


def test_edits_are_the_sources_outside_their_boxes_and_the_images_where_all_is_drawn(tmp_path):
    threads = torch.get_num_threads()
    subject = Subject(EditsSpec(out=tmp_path, threads=1, batch=2))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 16:48, 16:48] = masks[1] = True
    labels = torch.tensor([3, 5])
    whole = drawn(subject, subject.code(5), pixels, masks, labels)
    made = pasted(whole, pixels, masks)
    plain = drawn(subject, subject.code(5), pixels, None, labels)
    np.testing.assert_array_equal(made[0][~masks[0]], pixels[0][~masks[0]])
    assert (made[0][masks[0]] != pixels[0][masks[0]]).any()
    np.testing.assert_array_equal(made[1], plain[1])
    half = pixels // 2
    assert changed_outside(half + 3, half, masks[:1].repeat(2, 0)).value == 3
    torch.set_num_threads(threads)


def test_bad_input_is_refused(tiny_models, tmp_path, capsys):
    with pytest.raises(InputError, match="--boxes: expected shares above 0 up to 1, got 2"):
        run(EditsSpec(out=tmp_path, boxes=(2.0,)))
    models = [word for role, path in tiny_models.items() for word in (f"--{role}", path)]
    assert main(["study", "edits", *models, "--out", str(tmp_path)]) == 2
    assert "expected models of the embedded classes" in capsys.readouterr().err
