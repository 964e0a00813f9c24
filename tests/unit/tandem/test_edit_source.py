"""Edits: what the published methods compute, and what they leave of the source."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from support import reference
from tandem.collaborative import decode, draft, generate, generate_alone, refine
from tandem.config import SamplingConfig
from tandem.edit_source import Source, latent_cells
from tandem.errors import InputError
from tandem.sampling import uniforms

with np.load(reference.DATA / "edit_reference.npz") as file:
    ARRAYS = dict(file)
LABELS = torch.from_numpy(ARRAYS["labels"]).long()
GREEDY = torch.zeros(len(LABELS), 680, dtype=torch.int64)  # never read
SOURCE_IDS = torch.from_numpy(ARRAYS["source_ids"].astype(np.int64))
DRAWN = torch.from_numpy(ARRAYS["keep_1hw"][:, 0] == 0)
SOURCE = Source(SOURCE_IDS, DRAWN)
PLAIN = SamplingConfig(cfg=1.5, top_k=20, top_p=0.9)
NOISE = torch.from_numpy(np.asarray(uniforms(3, np.arange(2), 680)))


def models():
    return reference.drafter(), reference.refiner(), reference.vqvae()


def assert_close(actual: torch.Tensor, name: str) -> None:
    np.testing.assert_allclose(actual.numpy(), ARRAYS[name], rtol=2e-4, atol=2e-4, err_msg=name)


@torch.inference_mode()
@pytest.mark.parametrize("draft_steps", [3, 6, 8])
def test_the_published_edits(draft_steps):
    drafter, refiner, vqvae = models()
    prefix = draft(drafter, vqvae.quantize, LABELS, GREEDY, draft_steps, reference.GREEDY, SOURCE)
    assert_close(vqvae.quantize.unroll(prefix.ids(), SOURCE)[0][:, ::4], f"edit{draft_steps}_draft_f_hat")
    ids = refine(refiner, vqvae.quantize, LABELS, GREEDY, prefix, reference.GREEDY, SOURCE)
    assert_close(vqvae.quantize.unroll(ids, SOURCE)[0][:, ::4], f"edit{draft_steps}_f_hat")
    assert_close(F.avg_pool2d(decode(vqvae, ids, SOURCE), 8), f"edit{draft_steps}_image_32")


@torch.inference_mode()
def test_the_published_edit_by_the_drafter_alone():
    drafter, _, vqvae = models()
    pixels, ids = generate_alone(drafter, vqvae, LABELS, GREEDY, reference.GREEDY, SOURCE)
    assert_close(vqvae.quantize.unroll(ids, SOURCE)[0][:, ::4], "edit_alone_f_hat")
    assert_close(F.avg_pool2d(pixels, 8), "edit_alone_image_32")


@torch.inference_mode()
def test_in_one_batch_an_edit_and_an_image_are_what_they_are_alone():
    """An image is the edit in which every cell is drawn anew."""
    drawn = torch.stack([DRAWN[0], torch.ones_like(DRAWN[1])])
    pixels, ids = generate(*models(), LABELS, NOISE, 6, PLAIN, Source(SOURCE_IDS, drawn))
    one = slice(0, 1)
    edited = generate(*models(), LABELS[one], NOISE[one], 6, PLAIN, Source(SOURCE_IDS[one], DRAWN[one]))
    plain = generate(*models(), LABELS[1:], NOISE[1:], 6, PLAIN)
    for row, (alone_pixels, alone_ids) in enumerate((edited, plain)):
        assert torch.equal(ids[row], alone_ids[0])
        torch.testing.assert_close(pixels[row], alone_pixels[0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_mask_of_all_cells_gives_the_image_and_one_of_none_the_source():
    everything = torch.ones_like(DRAWN)
    pixels, ids = generate(*models(), LABELS, NOISE, 6, PLAIN, Source(SOURCE_IDS, everything))
    expected_pixels, expected_ids = generate(*models(), LABELS, NOISE, 6, PLAIN)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(pixels, expected_pixels)
    kept, _ = generate(*models(), LABELS, NOISE, 6, PLAIN, Source(SOURCE_IDS, ~everything))
    assert torch.equal(kept, decode(reference.vqvae(), SOURCE_IDS))


@torch.inference_mode()
def test_latents_outside_the_cells_are_the_sources_at_every_scale():
    quantizer = reference.vqvae().quantize
    first, other = (generate(*models(), LABELS, NOISE.roll(shift, 1), 6, PLAIN, SOURCE)[1] for shift in (0, 1))
    keep = (~DRAWN)[:, None].expand(-1, quantizer.channels, -1, -1)
    for scales in (1, 6, 10):
        tokens = quantizer.pyramid.offsets[scales]
        f_hats = [quantizer.unroll(ids[:, :tokens], SOURCE)[0] for ids in (first, other)]
        source_f_hat = quantizer.unroll(SOURCE_IDS[:, :tokens])[0]
        assert all(torch.equal(f_hat[keep], source_f_hat[keep]) for f_hat in f_hats)
        drawn_f_hat = quantizer.unroll(first[:, :tokens])[0]
        assert torch.equal(f_hats[0][~keep], drawn_f_hat[~keep])
        assert not torch.equal(f_hats[0][~keep], f_hats[1][~keep])


@torch.inference_mode()
def test_the_prefix_enters_the_refiner_as_it_was_blended():
    """Without its source a prefix of edits is another one."""
    drafter, refiner, vqvae = models()
    prefix = draft(drafter, vqvae.quantize, LABELS, GREEDY, 6, reference.GREEDY, SOURCE)
    blended = refine(refiner, vqvae.quantize, LABELS, GREEDY, prefix, reference.GREEDY, SOURCE)
    plain = refine(refiner, vqvae.quantize, LABELS, GREEDY, prefix, reference.GREEDY)
    assert not torch.equal(blended, plain)


def test_an_edit_may_have_no_class():
    none = torch.full_like(LABELS, reference.DRAFTER.num_classes)
    unguided = SamplingConfig(cfg=0.0, top_k=1)
    guided = SamplingConfig(cfg=4.0, top_k=1)  # (1 + t) u - t u is u
    _, ids = generate(*models(), none, GREEDY, 6, unguided, SOURCE)
    _, same = generate(*models(), none, GREEDY, 6, guided, SOURCE)
    assert (ids == same).float().mean() > 0.99
    with pytest.raises(InputError, match="labels: expected 0 to 9, got 10"):
        generate(*models(), none, GREEDY, 6, unguided)


@pytest.mark.parametrize("nearest", [False, True])
def test_a_narrow_stroke_is_drawn_unless_pixels_are_sampled(nearest):
    mask = torch.zeros(1, 256, 256, dtype=torch.bool)
    mask[0, 100:200, 34:41] = True  # 7 pixels wide, between the sampled columns 32 and 48
    cells = latent_cells(mask, 16, nearest)
    expected = torch.zeros(1, 16, 16, dtype=torch.bool)
    if not nearest:
        expected[0, 6:13, 2] = True
    assert torch.equal(cells, expected)
    assert torch.equal(latent_cells(~mask, 16)[0], torch.ones(16, 16, dtype=torch.bool))


@pytest.mark.parametrize(
    ("ids", "drawn", "message"),
    [
        (SOURCE_IDS[:, :30], DRAWN, r"source: expected ids \[2, 680\], got int64 \[2, 30\]"),
        (SOURCE_IDS[:1], DRAWN, r"source: expected ids \[2, 680\], got int64 \[1, 680\]"),
        (SOURCE_IDS + 250, DRAWN, r"ids: expected 0 to 255, got"),
        (SOURCE_IDS, DRAWN.float(), r"source: expected cells bool \[2, 16, 16\], got float32"),
        (SOURCE_IDS, DRAWN[:, :8], r"source: expected cells bool \[2, 16, 16\], got bool \[2, 8, 16\]"),
        (SOURCE_IDS, DRAWN.to("meta"), r"source: expected the device of the batch, cpu, got meta"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(ids, drawn, message):
    source = Source(ids, drawn)
    with pytest.raises(InputError, match=message):
        draft(reference.drafter(), reference.vqvae().quantize, LABELS, GREEDY, 6, reference.GREEDY, source)
    with pytest.raises(InputError, match=message):
        decode(reference.vqvae(), SOURCE_IDS, source)


def test_a_mask_that_cells_do_not_divide_is_refused():
    with pytest.raises(InputError, match=r"a width that 16 divides, got \[1, 64, 50\]"):
        latent_cells(torch.ones(1, 64, 50, dtype=torch.bool), 16)
