"""What `train var` and `finetune` plan: the model, its header, and what a teacher has to be."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from support.tiny_models import CLASS_NAMES, tiny_var
from tandem.checkpoints.fine_tuning import FineTuned
from tandem.checkpoints.weights import save_checkpoint
from tandem.config import SamplingConfig
from tandem.errors import CheckpointError
from tandem.training.matching import TokenShape
from tandem.training.objectives import Objective
from tandem.zoo import weights_path
from tandem_jobs.cli import main
from tandem_jobs.train.training_options import TokenOptions
from tandem_jobs.train.transformer_plan import Student, plan_transformer
from tandem_workers.models.model_set import resolve

OWN = {"cfg": 2.5, "top_k": 0, "top_p": 0.8, "temperatures": [1.0]}
SPEC = TokenOptions(out="out", tokens="tokens")


def source(**changes):
    config = tiny_var(1, 0).config
    values = {name: getattr(config, name) for name in ("vocab_size", "latent_channels", "patch_nums", "num_classes")}
    shape = TokenShape(**values | {"class_names": tuple(CLASS_NAMES)} | changes)
    return SimpleNamespace(shape=shape, identity=dict)


def saved(path, **header):
    save_checkpoint(path, tiny_var(1, 0), {"classes": list(CLASS_NAMES), **header}, torch.float32)
    return resolve("refiner", str(path), random_weights=False)


@pytest.fixture
def init(tmp_path):
    return saved(tmp_path / "init.safetensors", sampling=OWN)


def student(init, **changes) -> Student:
    values = {"objective": partial(Objective, draft_steps=2), "steps": 9, "batch": 4, "peak_lr": 1e-3, "init": init}
    return Student(**values | changes)


def test_what_is_trained_on_samples_as_its_origin_did(init):
    tuned = student(init, fine_tuned=FineTuned(2, 3.0))
    header = plan_transformer(SPEC, source(), tuned, "finetune refiner").header
    assert header["sampling"] == OWN and header["fine_tuned"] == {"draft_steps": 2, "distilled_cfg": 3.0}
    assert init.sampling == SamplingConfig(2.5, 0, 0.8, (1.0,))
    new = student(None, objective=partial(Objective), depth=2)
    planned = plan_transformer(SPEC, source(), new, "train var")
    assert "sampling" not in planned.header and planned.config.depth == 2


def test_the_recipe_says_what_changes_weights(init):
    recipe = plan_transformer(SPEC, source(), student(init, teacher=init), "finetune refiner").recipe
    assert recipe["init_sha256"] == recipe["teacher_sha256"] == init.ref.sha256
    assert recipe["objective"] == {"draft_steps": 2, "cut": False, "alpha": 1.0, "distill_cfg": None, "smoothing": 0.0}


def test_models_that_do_not_fit_the_tokens_or_each_other_are_refused(init):
    with pytest.raises(CheckpointError, match="vocab_size: expected 7"):
        plan_transformer(SPEC, source(vocab_size=7), student(init), "train var")
    with pytest.raises(CheckpointError, match="the teacher does not fit: num_classes"):
        plan_transformer(SPEC, source(num_classes=9, class_names=None), student(init, teacher=init), "finetune refiner")


def test_a_teacher_is_not_guided_twice_and_what_it_was_tuned_for_is_said(init, tmp_path, capsys):
    teacher = saved(tmp_path / "teacher.safetensors", **FineTuned(2, 3.0).to_header())
    guided = student(init, teacher=teacher, objective=partial(Objective, distill_cfg=3.0))
    with pytest.raises(CheckpointError, match="expected a teacher that needs guidance, got one distilled at cfg 3"):
        plan_transformer(SPEC, source(), guided, "finetune refiner")
    plan_transformer(SPEC, source(), student(init, teacher=teacher), "finetune refiner")
    assert "was fine-tuned for N = 2" in capsys.readouterr().err


def test_embedded_names_two_transformers_of_which_one_has_to_be_named(capsys):
    assert main(["train", "var", "--tokens", "tokens", "--init", "embedded", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert "--init: expected one model, got 'embedded', which is a drafter and a refiner: " in error
    assert str(weights_path("drafter")) in error and str(weights_path("refiner")) in error
