"""Drafter and refiner together: prefixes, batches, caches and what is not computed."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from support.tiny_models import NUM_CLASSES, PATCH_NUMS, VOCAB, tiny_var, tiny_vqvae
from tandem.attention import KVCache
from tandem.collaborative import draft, generate, generate_alone, refine
from tandem.config import SamplingConfig
from tandem.errors import InputError
from tandem.prefix import Prefix
from tandem.sampling import uniforms
from tandem.scales import decode_scales

SAMPLING = SamplingConfig(cfg=2.0, top_k=20, top_p=0.95)
NUM_TOKENS = sum(n * n for n in PATCH_NUMS)
LABELS = torch.tensor([0, 3, 1, 2, 0])
NOISE = uniforms(7, np.arange(5), NUM_TOKENS)


@pytest.fixture(scope="module")
def models():
    return tiny_var(depth=3, seed=1), tiny_var(depth=2, seed=2), tiny_vqvae()


@pytest.mark.parametrize("draft_steps", range(1, len(PATCH_NUMS)))
def test_a_prefix_survives_refining_and_the_rest_is_new(models, draft_steps):
    drafter, refiner, vqvae = models
    prefix = draft(drafter, vqvae.quantize, LABELS, NOISE, draft_steps, SAMPLING)
    cut = sum(n * n for n in PATCH_NUMS[:draft_steps])
    assert prefix.tokens.dtype == np.uint16
    assert prefix.tokens.shape == (5, cut)
    ids = refine(refiner, vqvae.quantize, LABELS, NOISE, prefix, SAMPLING)
    assert ids.shape == (5, NUM_TOKENS)
    np.testing.assert_array_equal(ids[:, :cut].numpy(), prefix.tokens)
    alone = generate_alone(drafter, vqvae, LABELS, NOISE, SAMPLING)[1]
    np.testing.assert_array_equal(alone[:, :cut].numpy(), prefix.tokens)
    assert not torch.equal(alone, ids)


def test_the_cache_gives_what_one_forward_over_all_tokens_gives(models):
    """Logits with the KV cache, scale by scale, against the teacher-forced ones of the same ids."""
    drafter, _, vqvae = models
    greedy = SamplingConfig(cfg=0.0, top_k=1)
    ids = generate_alone(drafter, vqvae, LABELS, NOISE, greedy)[1]
    with torch.inference_mode():
        _, inputs = vqvae.quantize.unroll(ids)
        assert torch.equal(drafter(LABELS, inputs).argmax(-1), ids)


def test_an_image_depends_on_its_seed_index_and_label_alone(models):
    """In other company and another row, logits agree to rounding, so the drawn ids are equal here."""
    drafter, refiner, vqvae = models
    pixels, ids = generate(drafter, refiner, vqvae, LABELS, NOISE, 2, SAMPLING)
    order = torch.tensor([4, 1])
    others, other_ids = generate(drafter, refiner, vqvae, LABELS[order], NOISE[order], 2, SAMPLING)
    assert torch.equal(other_ids, ids[order])
    torch.testing.assert_close(others, pixels[order], rtol=1e-4, atol=1e-4)


def test_logits_in_another_batch_agree_to_rounding(models):
    drafter, _, vqvae = models
    ids = torch.randint(VOCAB, (6, NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % NUM_CLASSES
    with torch.inference_mode():
        _, inputs = vqvae.quantize.unroll(ids)
        together = drafter(labels, inputs)
        alone = torch.cat([drafter(labels[i : i + 1], inputs[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_no_logits_are_computed_for_the_prefix(models):
    drafter, refiner, vqvae = models
    seen = []
    hook = refiner.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    prefix = draft(drafter, vqvae.quantize, LABELS, NOISE, 2, SAMPLING)
    refine(refiner, vqvae.quantize, LABELS, NOISE, prefix, SAMPLING)
    hook.remove()
    assert seen == [n * n for n in PATCH_NUMS[2:]]


def test_without_guidance_no_unconditional_rows_are_computed(models):
    drafter, _, vqvae = models
    seen = []
    hook = drafter.head_nm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    draft(drafter, vqvae.quantize, LABELS, NOISE, 2, SamplingConfig(cfg=0.0))
    draft(drafter, vqvae.quantize, LABELS, NOISE, 2, SamplingConfig(cfg=1.0))
    draft(drafter, vqvae.quantize, LABELS, NOISE, 1, SamplingConfig(cfg=1.0))  # which is 0 at the first scale
    hook.remove()
    assert seen == [5, 5, 10, 10, 5]


def test_images_of_one_batch_may_differ_in_sampling(models):
    """With and without guidance side by side, each as in a batch of its own; the ids come scale by scale."""
    drafter, _, vqvae = models
    mixed = [SamplingConfig(cfg=0.0), SAMPLING, SamplingConfig(cfg=0.0), SamplingConfig(cfg=4.0, top_k=1), SAMPLING]
    scales = list(decode_scales(drafter, vqvae.quantize, LABELS, NOISE, NOISE[:, :0], len(PATCH_NUMS), mixed))
    assert [ids.shape[1] for ids in scales] == np.cumsum([n * n for n in PATCH_NUMS]).tolist()
    for earlier, later in pairwise(scales):
        assert torch.equal(later[:, : earlier.shape[1]], earlier)
    for row, sampling in enumerate(mixed):
        one = slice(row, row + 1)
        assert torch.equal(scales[-1][one], generate_alone(drafter, vqvae, LABELS[one], NOISE[one], sampling)[1])


def test_the_cache_ends_before_the_last_scale(models, monkeypatch):
    drafter, refiner, vqvae = models
    caches = []

    class Recorded(KVCache):
        def __init__(self, *args):
            super().__init__(*args)
            caches.append(self)

    monkeypatch.setattr("tandem.scales.KVCache", Recorded)
    prefix = draft(drafter, vqvae.quantize, LABELS, NOISE, 2, SAMPLING)
    refine(refiner, vqvae.quantize, LABELS, NOISE, prefix, SAMPLING)
    read_again, widest = [1, NUM_TOKENS - PATCH_NUMS[-1] ** 2], [5, NUM_TOKENS]
    assert [cache.store.shape[4] for cache in caches] == read_again
    assert [cache.scratch.shape[3] for cache in caches] == widest
    widths = [3 * 64, 2 * 64]
    expected = [
        2 * 2 * 5 * (depth * n + wide) * width * 4
        for depth, n, wide, width in zip((3, 2), read_again, widest, widths, strict=True)
    ]
    assert [cache.num_bytes for cache in caches] == expected


def test_nothing_is_cached_that_is_not_read_again(models, monkeypatch):
    """The first scale alone, and a refiner whose entry is the last scale, need no cache at all."""
    drafter, refiner, vqvae = models
    caches = []
    monkeypatch.setattr("tandem.scales.KVCache", lambda *args: caches.append(KVCache(*args)) or caches[-1])
    draft(drafter, vqvae.quantize, LABELS, NOISE, 1, SAMPLING)
    prefix = draft(drafter, vqvae.quantize, LABELS, NOISE, len(PATCH_NUMS) - 1, SAMPLING)
    refine(refiner, vqvae.quantize, LABELS, NOISE, prefix, SAMPLING)
    assert [cache.num_bytes > 0 for cache in caches] == [False, True, False]


@pytest.mark.parametrize(
    ("tokens", "steps", "message"),
    [
        (np.zeros((2, 5), np.int64), 2, "expected uint16"),
        (np.zeros((2, 4), np.uint16), 2, r"expected uint16 \[B, 5\], got uint16 \[2, 4\]"),
        (np.full((2, 5), VOCAB, np.uint16), 2, f"below {VOCAB}, got {VOCAB}"),
        (np.zeros((2, 5), np.uint16), 0, "expected 1 to 3"),
        (np.zeros((2, 5), np.uint16), 4, "expected 1 to 3"),
    ],
)
def test_a_wrong_prefix_is_refused(models, tokens, steps, message):
    refiner, vqvae = models[1], models[2]
    with pytest.raises(InputError, match=message):
        refine(refiner, vqvae.quantize, LABELS[:2], NOISE[:2], Prefix(tokens, steps), SAMPLING)
