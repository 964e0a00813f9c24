"""`tandem bench train`: what it counts, takes and refuses."""

import json
from dataclasses import replace

import pytest

from tandem.config import VAR_PRESETS
from tandem.training.recipe import IMAGENET_IMAGES
from tandem.training.train_costs import TrainingStep
from tandem_jobs.bench.bench_train import recipe_hours
from tandem_jobs.cli import main


def test_a_step_is_counted_and_taken(capsys):
    assert main(["bench", "train", "--size", "tiny", "--dtype", "float32", "--measure", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["flops_per_image"] == pytest.approx(found["measured"]["torch_flops"], rel=0.002)
    assert found["bytes"]["activations"] == pytest.approx(found["measured"]["saved_bytes"], rel=0.02)
    assert found["bytes"]["total"] == sum(value for name, value in found["bytes"].items() if name != "total")
    assert found["recipe_hours"] is None


def test_hours_are_those_of_the_papers_recipe():
    """Of a published depth, its share of the epochs over images a second; nothing for plain training."""
    d16, images = VAR_PRESETS["d16"], 200 * IMAGENET_IMAGES
    assert recipe_hours(TrainingStep(d16, draft_steps=8), 1000.0) == pytest.approx(0.05 * images / 1000 / 3600)
    assert recipe_hours(TrainingStep(d16, teacher=d16), 1000.0) == pytest.approx(0.25 * images / 1000 / 3600)
    assert recipe_hours(TrainingStep(d16), 1000.0) is None
    assert recipe_hours(TrainingStep(replace(d16, depth=3), draft_steps=8), 1000.0) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--guided",), "--guided: expected --teacher, got none"),
        (("--draft-steps", "4"), "draft_steps: expected 1 to 3"),
        (("--teacher", "d16"), "--teacher: expected the pyramid of tiny, got that of d16"),
        (("--shard", "fsdp", "--measure"), "--measure: expected one process"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message, capsys):
    assert main(["bench", "train", "--size", "tiny", *options]) == 2
    assert message in capsys.readouterr().err
