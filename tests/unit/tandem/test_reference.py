"""Every array of the published implementation is reproduced: ids equal, floats within 2e-4."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from support import reference
from tandem.collaborative import decode, draft, generate, generate_alone, refine
from tandem.config import SamplingConfig

ARRAYS = reference.arrays()
LABELS = torch.from_numpy(ARRAYS["labels"]).long()
UNIFORMS = torch.zeros(len(LABELS), 680, dtype=torch.int64)  # greedy: never read
DRAFT_STEPS = sorted(int(k[4:-4]) for k in ARRAYS if k.startswith("code") and k.endswith("_ids"))


def pooled(pixels: torch.Tensor) -> np.ndarray:
    return F.avg_pool2d(pixels, 8).numpy()


def assert_close(actual, name: str) -> None:
    np.testing.assert_allclose(np.asarray(actual), ARRAYS[name], rtol=2e-4, atol=2e-4, err_msg=name)


def test_the_file_holds_what_these_tests_read():
    read = {"labels", "vqvae_input_32", "vqvae_ids", "vqvae_f_hat", "vqvae_recon_32", "var_input_head"}
    read |= {"drafter_logits", "refiner_logits", "var_ids", "var_image_32", "probs_logits"}
    read |= {f"code{n}_{what}" for n in DRAFT_STEPS for what in ("ids", "image_32")}
    assert DRAFT_STEPS
    assert {k for k in ARRAYS if k not in read and not k.startswith("probs_k")} == set()


@torch.inference_mode()
def test_vqvae_encodes_and_decodes():
    vqvae, pixels = reference.vqvae(), reference.input_pixels()
    assert_close(pooled(pixels), "vqvae_input_32")
    ids = vqvae.encode(pixels)
    np.testing.assert_array_equal(ids.numpy(), ARRAYS["vqvae_ids"])
    f_hat, inputs = vqvae.quantize.unroll(ids)
    assert_close(f_hat[:, ::4], "vqvae_f_hat")
    assert_close(inputs[:, ::17], "var_input_head")
    assert_close(pooled(vqvae.decode(f_hat) * 2 - 1), "vqvae_recon_32")


@torch.inference_mode()
@pytest.mark.parametrize("role", ["drafter", "refiner"])
def test_teacher_forced_logits(role):
    _, inputs = reference.vqvae().quantize.unroll(torch.from_numpy(ARRAYS["vqvae_ids"]).long())
    logits = getattr(reference, role)()(LABELS, inputs)
    assert_close(logits[:, ::17, :64], f"{role}_logits")


@pytest.mark.parametrize("draft_steps", DRAFT_STEPS)
def test_collaborative_decoding(draft_steps):
    models = reference.drafter(), reference.refiner(), reference.vqvae()
    pixels, ids = generate(*models, LABELS, UNIFORMS, draft_steps, reference.GREEDY)
    np.testing.assert_array_equal(ids.numpy(), ARRAYS[f"code{draft_steps}_ids"])
    assert_close(pooled(pixels), f"code{draft_steps}_image_32")


def test_drafter_alone():
    pixels, ids = generate_alone(reference.drafter(), reference.vqvae(), LABELS, UNIFORMS, reference.GREEDY)
    np.testing.assert_array_equal(ids.numpy(), ARRAYS["var_ids"])
    assert_close(pooled(pixels), "var_image_32")


@pytest.mark.parametrize("draft_steps", [1, 9])
def test_every_draft_step_continues_the_drafter(draft_steps):
    """A refiner that is the drafter gives what the drafter gives alone, wherever the cut is."""
    drafter, quantizer = reference.drafter(), reference.vqvae().quantize
    prefix = draft(drafter, quantizer, LABELS, UNIFORMS, draft_steps, reference.GREEDY)
    ids = refine(drafter, quantizer, LABELS, UNIFORMS, prefix, reference.GREEDY)
    np.testing.assert_array_equal(ids.numpy(), ARRAYS["var_ids"])
    assert_close(pooled(decode(reference.vqvae(), ids)), "var_image_32")


@pytest.mark.parametrize("name", sorted(k for k in ARRAYS if k.startswith("probs_k")))
def test_filtered_probabilities(name):
    top_k, top_p, temperature = (part[1:] for part in name.split("_")[1:])
    sampling = SamplingConfig(top_k=int(top_k), top_p=float(top_p))
    logits = torch.from_numpy(ARRAYS["probs_logits"])
    actual = reference.probabilities(logits, sampling, float(temperature))
    assert_close(actual, name)
    assert ((actual > 0).numpy() == (ARRAYS[name] > 0)).all()
