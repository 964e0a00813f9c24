"""The library's calls refuse what the command line refuses, and say what they take."""

import dataclasses
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import tandem
from support.tiny_models import NUM_CLASSES, PATCH_NUMS, VOCAB, tiny_var, tiny_vqvae
from tandem import SamplingConfig, decode, decode_scales, draft, generate, generate_alone, refine, uniforms

TOKENS = sum(n * n for n in PATCH_NUMS)
LABELS = torch.tensor([0, 3])
NOISE = uniforms(7, np.arange(2), TOKENS)
SAMPLING = SamplingConfig(cfg=2.0, top_k=20)
SCALES = len(PATCH_NUMS)


@pytest.fixture(scope="module")
def models():
    return tiny_var(depth=2, seed=1), tiny_vqvae()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"draft_steps": 10}, f"draft_steps: expected 1 to {SCALES - 1} .*, got 10"),
        ({"draft_steps": 0}, f"draft_steps: expected 1 to {SCALES - 1} .*, got 0"),
        ({"draft_steps": 2.0}, f"draft_steps: expected 1 to {SCALES - 1} .*, got 2.0"),
        ({"labels_B": torch.tensor([0, 99])}, f"labels: expected 0 to {NUM_CLASSES - 1}, got 99"),
        ({"labels_B": torch.tensor([0, NUM_CLASSES])}, f"labels: expected 0 to {NUM_CLASSES - 1}, got {NUM_CLASSES}"),
        ({"labels_B": torch.tensor([-1, 0])}, f"labels: expected 0 to {NUM_CLASSES - 1}, got -1"),
        (
            {"labels_B": torch.tensor([0.0, 1.0])},
            r"labels: expected one or more whole numbers \[B\], got float32 \[2\]",
        ),
        ({"labels_B": torch.tensor([[0, 1]])}, r"labels: expected one or more whole numbers \[B\], got int64 \[1, 2\]"),
        ({"labels_B": [0, 1]}, "labels: expected .*, got a list"),
        ({"labels_B": torch.tensor([0])}, rf"uniforms: expected int64 \[1, {TOKENS}\], got int64 \[2, {TOKENS}\]"),
        ({"uniforms_BL": torch.rand(2, TOKENS)}, rf"uniforms: expected int64 \[2, {TOKENS}\], got float32"),
        ({"uniforms_BL": NOISE[:, 1:]}, rf"uniforms: expected int64 \[2, {TOKENS}\], got int64 \[2, {TOKENS - 1}\]"),
        ({"uniforms_BL": NOISE + 2**31}, f"uniforms: expected 0 to {2**31 - 1}, got "),
        ({"uniforms_BL": None}, r"uniforms: expected int64 \[B, L\], got a NoneType"),
        ({"sampling": [SAMPLING]}, "sampling: expected one SamplingConfig, or one for each of 2 images, got 1"),
        ({"sampling": 3.0}, "sampling: expected one SamplingConfig, or one for each of 2 images, got a float"),
    ],
)
def test_what_does_not_fit_is_a_value_error_that_says_expected_and_actual(models, changes, line):
    var, vqvae = models
    given = {"labels_B": LABELS, "uniforms_BL": NOISE, "sampling": SAMPLING}
    with pytest.raises(ValueError, match=f"^{line}"):
        draft(var, vqvae.quantize, **{**given, "draft_steps": 2} | changes)
    with pytest.raises(ValueError, match=f"^{line}"):
        generate(var, var, vqvae, **{**given, "draft_steps": 2} | changes)
    if "draft_steps" not in changes:
        with pytest.raises(ValueError, match=f"^{line}"):
            generate_alone(var, vqvae, **given | changes)


def test_a_prefix_and_a_stop_that_do_not_fit_are_refused(models):
    var, vqvae = models
    prefix = draft(var, vqvae.quantize, LABELS, NOISE, 2, SAMPLING)
    with pytest.raises(ValueError, match=r"prefix: expected int64 \[1, .*, got int64 \[2, "):
        refine(var, vqvae.quantize, LABELS[:1], NOISE[:1], prefix, SAMPLING)
    with pytest.raises(ValueError, match="prefix: expected a Prefix, got int64"):
        refine(var, vqvae.quantize, LABELS, NOISE, prefix.ids(), SAMPLING)
    for stop, line in (
        (SCALES + 1, "stop: expected 1 to"),
        (1, "prefix: expected whole scales, one of"),
        (1.5, "stop"),
    ):
        with pytest.raises(ValueError, match=line):
            next(decode_scales(var, vqvae.quantize, LABELS, NOISE, prefix.ids(), stop, SAMPLING))


def test_models_that_do_not_belong_together_are_refused(models):
    other = tiny_vqvae()
    other.quantize.vocab_size = 7
    with pytest.raises(ValueError, match=rf"quantizer: expected .* and {VOCAB} codes, got .* and 7"):
        draft(models[0], other.quantize, LABELS, NOISE, 2, SAMPLING)


@pytest.mark.parametrize(
    ("ids", "line"),
    [
        (torch.zeros(2, TOKENS), "ids: expected int64 .*, got float32"),
        (torch.zeros(2, 3, dtype=torch.int64), r"ids: expected int64 \[B, L\] with L one of .*, got int64 \[2, 3\]"),
        (torch.full((1, TOKENS), VOCAB), f"ids: expected 0 to {VOCAB - 1}, got {VOCAB}"),
    ],
)
def test_ids_that_do_not_fit_are_refused(models, ids, line):
    with pytest.raises(ValueError, match=line):
        decode(models[1], ids)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ((-1, [0], 3), "seed: expected 0 to"),
        ((1.5, [0], 3), "seed: expected a whole number"),
        ((0, [0.5], 3), r"index: expected one or more whole numbers \[B\] >= 0, got float64 \[1\]"),
        ((0, [-1], 3), "index: expected"),
        ((0, [], 3), "index: expected"),
        ((0, [0], 0), "num_tokens: expected 1 to"),
    ],
)
def test_random_numbers_of_nothing_are_refused(args, line):
    with pytest.raises(ValueError, match=line):
        uniforms(*args)


def test_all_public_names_are_listed_before_they_are_imported():
    code = "import tandem; missing = set(tandem.__all__) - set(dir(tandem)); assert not missing, missing; print('ok')"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "ok\n"
    assert all(hasattr(tandem, name) for name in dir(tandem))
    assert "decode_scales" in tandem.__all__


@pytest.mark.parametrize("name", [name for name in tandem.__all__ if callable(getattr(tandem, name))])
def test_every_public_name_says_what_it_takes(name):
    thing = getattr(tandem, name)
    text = inspect.getdoc(thing) or ""
    assert text
    if dataclasses.is_dataclass(thing):
        wanted = [field.name for field in dataclasses.fields(thing)]
    elif inspect.isfunction(thing):
        wanted = list(inspect.signature(inspect.unwrap(thing)).parameters)
        assert "Raises" in text
    else:
        return
    missing = [word for word in wanted if not re.search(rf"\b{word}: ", text)]
    assert not missing, f"{name} says nothing of {missing}"
