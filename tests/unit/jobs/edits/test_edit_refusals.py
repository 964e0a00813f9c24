"""Pictures and masks that cannot be used: one line, exit code 2, nothing written."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tandem_jobs.cli import main

SIZE = (20, 16)


@pytest.fixture
def files(tmp_path):
    """A picture, and others that are none."""
    Image.new("RGB", SIZE, "red").save(tmp_path / "a.png")
    Image.new("L", (16, 16), 255).save(tmp_path / "small.png")
    Image.new("L", SIZE, 255).save(tmp_path / "mask.png")
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "deep.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("picture", "what", "expected"),
    [
        ("a.png", ["--mask", "small.png"], "small.png: expected a mask of the picture's size, 20 x 16, got 16 x 16"),
        ("a.png", ["--mask", "mask.png"], "expected one within a square of 16 pixels"),
        ("a.png", ["--box", "0,0,30,8"], "a.png: box: expected one within 20 x 16 pixels, got 30 x 8"),
        ("two.gif", ["--box", "0,0,1,1"], "two.gif: expected a still picture, got several frames"),
        ("deep.png", ["--box", "0,0,1,1"], "deep.png: expected 8 bits a channel, got mode I;16"),
        ("large.png", ["--box", "0,0,1,1"], "large.png: expected at most 89478485 pixels, got 10000 x 10000"),
        ("text.png", ["--box", "0,0,1,1"], "text.png: not an image, despite its name"),
        ("none.png", ["--box", "0,0,1,1"], "none.png, there is nothing"),
        ("a.png", ["--mask", "none.png"], "none.png, there is nothing"),
    ],
)
@pytest.mark.parametrize("command", ["edit", "draft-edits"])
def test_bad_pictures_and_masks(files, tiny_models, monkeypatch, capsys, command, picture, what, expected):
    monkeypatch.chdir(files)
    roles = tiny_models if command == "edit" else ("drafter", "vqvae")
    models = [word for role in roles for word in (f"--{role}", tiny_models[role])]
    assert main([command, picture, *what, "--label", "ant", *models, "--out", "out"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert expected in error
    assert not (files / "out").exists()
