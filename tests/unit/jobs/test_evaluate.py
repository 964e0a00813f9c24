"""`tandem evaluate` with tiny models: token ids are kept for the same numbers, and made anew for others."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from test_training import data  # noqa: F401

from tandem.errors import InputError
from tandem.training_pictures import PictureSet
from tandem_jobs.cli import main
from tandem_jobs.train.evaluate import check_pictures


@pytest.fixture
def evaluate(data, tiny_models, tmp_path, capsys):  # noqa: F811
    threads, folder = torch.get_num_threads(), tmp_path / "data"  # with the four classes of the tiny models
    for split in ("train", "heldout"):
        for there, name in (("ant", "ant"), ("bee", "bee"), ("zebra", "cat"), ("zebra", "dog")):
            shutil.copytree(data / split / there, folder / split / name)
    models = [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", tiny_models[role])]
    small = ["--images", "6", "--batch", "4", "--classifier-steps", "2", "--rounds", "3", "--threads", "1"]

    def run(*flags: str) -> tuple[dict, str]:
        command = ["evaluate", "--data", str(folder), "--out", str(tmp_path / "out"), *models, *small]
        assert main([*command, "--draft-steps", "2", *flags]) == 0
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]), said.err

    yield run
    torch.set_num_threads(threads)


def test_int8_fp8_and_bfloat16_are_other_images_of_the_same_settings(evaluate, tmp_path):
    plain, said = evaluate()
    assert (plain["dtype"], plain["int8"], plain["fp8"]) == ("float32", False, False)
    assert set(plain["settings"]) == {"refiner", "drafter", "code-2"}
    assert said.count("6 images in") == 3
    again, said = evaluate()
    assert "6 images in" not in said  # the ids are there
    assert again == plain
    for flags, numbers in (
        (["--int8"], ("float32", True, False)),
        (["--fp8"], ("float32", False, True)),
        (["--dtype", "bfloat16"], ("bfloat16", False, False)),
    ):
        other, said = evaluate(*flags)
        assert (other["dtype"], other["int8"], other["fp8"]) == numbers
        assert said.count("6 images in") == 3
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == other
    assert (tmp_path / "out" / "samples.png").exists()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a",), "two or more classes to tell apart, got 'a' alone"),
        (("a", "b", "c"), r"expected the 2 classes of the models in their order \(a, b\), got 3 \(a, b, c\)"),
        (("b", "a"), r"in their order \(a, b\), got 2 \(b, a\)"),
    ],
)
def test_pictures_of_other_classes_than_the_models_are_refused(classes, message):
    models = SimpleNamespace(image_size=16, class_names=("a", "b"))
    pixels = torch.zeros(len(classes), 3, 16, 16, dtype=torch.uint8)
    pictures = PictureSet(pixels, torch.arange(len(classes)), classes, classes)
    with pytest.raises(InputError, match=message):
        check_pictures(models, pictures)
