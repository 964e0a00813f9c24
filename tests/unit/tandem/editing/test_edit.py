"""Edits of one picture of any size, with tiny models."""

import numpy as np
import pytest
import torch

from support.tiny_models import PATCH_NUMS, tiny_var, tiny_vqvae
from tandem.collaborative import generate, generate_alone
from tandem.config import SamplingConfig
from tandem.editing.edit import edit
from tandem.editing.masks import Picture, box_mask
from tandem.errors import InputError
from tandem.sampling import uniforms
from tandem.vqvae import rounded

K = len(PATCH_NUMS)
VQVAE = tiny_vqvae()
SIDE = VQVAE.config.image_size
MODELS = tiny_var(depth=2, seed=1), tiny_var(depth=1, seed=2), VQVAE
SAMPLING = SamplingConfig(cfg=2.0, top_k=20, top_p=0.95)
LABELS = torch.tensor([0, 1, 2])
NOISE = uniforms(5, np.arange(3), sum(n * n for n in PATCH_NUMS))


def picture(height: int, width: int) -> Picture:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(pixels, pixels)


@pytest.mark.parametrize("draft_steps", range(K + 1))
def test_a_full_mask_gives_the_generated_images(draft_steps):
    alone = {0: (MODELS[1], SAMPLING.of_refiner), K: (MODELS[0], SAMPLING)}
    if draft_steps in alone:
        var, sampling = alone[draft_steps]
        expected, _ = generate_alone(var, VQVAE, LABELS, NOISE, sampling)
    else:
        expected, _ = generate(*MODELS, LABELS, NOISE, draft_steps, SAMPLING)
    mask = np.ones((SIDE, SIDE), bool)
    found = edit(*MODELS, picture(SIDE, SIDE), mask, LABELS, NOISE, draft_steps, SAMPLING)
    assert np.array_equal(found, rounded(expected).numpy())


@pytest.mark.parametrize("fit", ["crop", "pad", "resize"])
def test_a_picture_of_any_size_keeps_its_size_and_what_is_not_masked(fit):
    source = picture(SIDE + 9, 2 * SIDE)
    mask = box_mask((0.5, 0.4, 0.6, 0.7), source.pixels.shape[:2])
    found = edit(*MODELS, source, mask, LABELS, NOISE, 2, SAMPLING, fit=fit, blend="paste")
    assert found.shape == (3, *source.pixels.shape)
    assert all(np.array_equal(one[~mask], source.pixels[~mask]) for one in found)
    assert not np.array_equal(found[0][mask], found[1][mask])
    again = edit(*MODELS, source, mask, LABELS[1:], NOISE[1:], 2, SAMPLING, fit=fit, blend="paste")
    assert np.array_equal(again, found[1:])


def test_an_empty_mask_gives_the_picture_back():
    source = picture(20, 30)
    found = edit(*MODELS, source, np.zeros((20, 30), bool), LABELS, NOISE, 2, SAMPLING, blend="none")
    assert all(np.array_equal(one, source.pixels) for one in found)


@pytest.mark.parametrize(
    ("mask", "draft_steps", "message"),
    [
        (np.zeros((20, 20), bool), 2, r"mask: expected bool \[20, 30\], got bool \[20, 20\]"),
        (np.zeros((20, 30)), 2, r"mask: expected bool \[20, 30\], got float64"),
        (np.ones((20, 30), bool), K + 1, f"draft_steps: expected 0 to {K}, got {K + 1}"),
    ],
)
def test_what_does_not_fit_is_refused(mask, draft_steps, message):
    with pytest.raises(InputError, match=message):
        edit(*MODELS, picture(20, 30), mask, LABELS, NOISE, draft_steps, SAMPLING, fit="pad")
