"""Edits in the endpoint's batches: as the library makes them alone, in the same batch as plain images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from support.tiny_models import PATCH_NUMS
from tandem.collaborative import decode, generate, generate_alone
from tandem.config import SamplingConfig
from tandem.editing.canvas import Canvas
from tandem.editing.edit import source_of
from tandem.editing.masks import Picture
from tandem.sampling import uniforms
from tandem.vqvae import to_float
from tandem_workers.endpoint.decoding import DraftDecoder, RefineDecoder, Row
from tandem_workers.models.model_set import ModelSet, resolve_models
from tandem_workers.pictures.edit_pictures import EditPicture
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.requests.messages import Edit, ImageRequest
from tandem_workers.stages.refiner import to_uint8

K = len(PATCH_NUMS)
NUM_TOKENS = sum(n * n for n in PATCH_NUMS)
OFFSETS = [0, *np.cumsum([n * n for n in PATCH_NUMS])]
NOTHING = np.zeros(0, np.uint16)
GUIDED = SamplingConfig(cfg=2.0, top_k=20, top_p=0.95)
Works = tuple[DraftDecoder, RefineDecoder]


@pytest.fixture(scope="module")
def models(tiny_models) -> ModelSet:
    return resolve_models(tiny_models["drafter"], tiny_models["refiner"], tiny_models["vqvae"], False)


@pytest.fixture(scope="module")
def works(models) -> Iterator[Works]:
    before = torch.get_num_threads()
    yield DraftDecoder(models, "float32", 1), RefineDecoder(models, "float32", 1)
    torch.set_num_threads(before)


def edit_of(models: ModelSet, box: tuple[int, int, int, int], keep: int = 0, blend="paste", seed: int = 0) -> Edit:
    """An edit of a box of noise."""
    side = models.image_size
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    mask = np.zeros((side, side), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    found = EditPicture("image", Picture(pixels, pixels), mask, Canvas.of("crop", mask, side), "0" * 64)
    return Edit.of(found, "crop", PutBack(blend), keep)


def ask(edit: Edit | None, label: int = 1, seed: int = 5, steps: int = 2, **more) -> ImageRequest:
    return ImageRequest(label, seed, 1, steps, GUIDED, edit=edit, **more)


def make(works: Works, requests: list[ImageRequest], size: int) -> list[np.ndarray]:
    """Pixels of each request, all in one batch: drafted where there is something to draft, then refined."""
    rows = [Row(request, 0, NOTHING) for request in requests]
    if requests[0].draft_steps > requests[0].kept_scales:
        drafted = dict(works[0](rows, size))
        rows = [Row(row.request, 0, drafted[i].ids, drafted[i].source) for i, row in enumerate(rows)]
    made = dict(works[1](rows, size))
    return [made[i].pixels for i in range(len(rows))]


def by_hand(works: Works, request: ImageRequest) -> np.ndarray:
    """By the library, one image alone."""
    drafter, refiner, vqvae = works[0].var, works[1].var, works[0].vqvae
    labels, noise = torch.tensor([request.label]), uniforms(request.seed, np.array([0]), NUM_TOKENS)
    edit = request.edit
    source = source_of(vqvae, edit.square[None], edit.square_mask[None]) if edit else None
    if request.draft_steps in (0, K):
        alone = drafter if request.draft_steps else refiner
        pixels, _ = generate_alone(alone, vqvae, labels, noise, request.sampling, source)
    else:
        pixels, _ = generate(drafter, refiner, vqvae, labels, noise, request.draft_steps, request.sampling, source)
    return to_uint8(pixels)[0]


@pytest.mark.parametrize("steps", [0, 2, K])
def test_edits_and_plain_images_in_one_batch_are_as_alone(works, models, steps):
    edit = edit_of(models, (4, 4, 10, 12))
    none = works[0].var.config.num_classes
    requests = [
        ask(edit, steps=steps),
        ask(None, steps=steps),
        ask(edit, label=none, steps=steps),
        ask(edit_of(models, (0, 0, 3, 9), seed=1), seed=6, steps=steps),
    ]
    for made, request in zip(make(works, requests, 4), requests, strict=True):
        assert np.abs(made.astype(int) - by_hand(works, request)).max() <= 1
    assert make(works, requests, 4)[2].tolist() != make(works, requests, 4)[0].tolist()


def test_a_full_mask_gives_the_image_of_no_picture(works, models):
    side = models.image_size
    plain, edited = make(works, [ask(None), ask(edit_of(models, (0, 0, side, side)))], 2)
    np.testing.assert_array_equal(plain, edited)


@pytest.mark.parametrize("steps", [0, 1, 2, K])
@pytest.mark.parametrize("keep", [1, 2])
def test_kept_scales_are_the_pictures_own_and_the_others_drawn(works, models, steps, keep, monkeypatch):
    side = models.image_size
    edit = edit_of(models, (0, 0, side, side), keep)
    request = ask(edit, steps=steps)
    own = works[0].vqvae.encode(to_float(torch.from_numpy(edit.square.copy()).permute(2, 0, 1)[None]))
    row = Row(request, 0, NOTHING)
    if steps > keep:
        drafted = dict(works[0]([row], 1))[0]
        assert len(drafted.ids) == OFFSETS[steps]
        np.testing.assert_array_equal(drafted.ids[: OFFSETS[keep]], own[0, : OFFSETS[keep]])
        row = replace(row, prefix=drafted.ids, source=drafted.source)
    seen = []
    monkeypatch.setattr("tandem_workers.endpoint.decoding.decode", lambda *given: seen.append(given) or decode(*given))
    list(works[1]([row], 1))
    ids = seen[-1][1]
    np.testing.assert_array_equal(ids[0, : OFFSETS[keep]], own[0, : OFFSETS[keep]])
    assert ids[0, OFFSETS[keep] :].tolist() != own[0, OFFSETS[keep] :].tolist()
