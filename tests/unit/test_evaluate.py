"""`tandem evaluate` with tiny models: token ids are kept for the same numbers, and made anew for others."""

import json

import pytest
import torch
from test_training import data  # noqa: F401

from jobs.cli import main


@pytest.fixture
def evaluate(data, tiny_models, tmp_path, capsys):  # noqa: F811
    threads = torch.get_num_threads()
    models = [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", tiny_models[role])]
    small = ["--images", "6", "--batch", "4", "--classifier-steps", "2", "--rounds", "3", "--threads", "1"]

    def run(*flags: str) -> tuple[dict, str]:
        command = ["evaluate", "--data", str(data), "--out", str(tmp_path / "out"), *models, *small]
        assert main([*command, "--draft-steps", "2", *flags]) == 0
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]), said.err

    yield run
    torch.set_num_threads(threads)


def test_int8_and_bfloat16_are_other_images_of_the_same_settings(evaluate, tmp_path):
    plain, said = evaluate()
    assert (plain["dtype"], plain["int8"]) == ("float32", False)
    assert set(plain["settings"]) == {"refiner", "drafter", "code-2"}
    assert said.count("6 images in") == 3
    again, said = evaluate()
    assert "6 images in" not in said  # the ids are there
    assert again == plain
    for flags, numbers in ((["--int8"], ("float32", True)), (["--dtype", "bfloat16"], ("bfloat16", False))):
        other, said = evaluate(*flags)
        assert (other["dtype"], other["int8"]) == numbers
        assert said.count("6 images in") == 3
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == other
    assert (tmp_path / "out" / "samples.png").exists()
