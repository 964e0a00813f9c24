"""Guidance by scale and stage: strengths of schedules, which images have a second row at which scale, and the ids."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from support.tiny_models import PATCH_NUMS, tiny_var, tiny_vqvae
from tandem import draft, refine, uniforms
from tandem.config import SamplingConfig, from_dict, to_dict
from tandem.errors import InputError
from tandem.guidance import guided_images, rows_of_scales
from tandem.scales import Decode, decode_scales, new_cache

K = len(PATCH_NUMS)
LINEAR = SamplingConfig(cfg=3.0, top_k=0, top_p=0.9, temperatures=(1.0,))
FREE, EARLY = replace(LINEAR, cfg=0.0), replace(LINEAR, cfg_schedule="off-after:3")


@pytest.mark.parametrize(
    ("schedule", "strengths"),
    [
        ("linear", [0, 1, 2, 3]),
        ("constant", [3, 3, 3, 3]),
        ("off-after:3", [0, 1, 2, 0]),
        ("off-after:1", [0, 0, 0, 0]),
        ("off-after:4", [0, 1, 2, 3]),
        ("0.5,0,2,0", [0.5, 0, 2, 0]),
    ],
)
def test_strengths_of_schedules(schedule, strengths):
    assert SamplingConfig(cfg=3.0, cfg_schedule=schedule).strengths(4) == tuple(strengths)


def test_guidance_in_words():
    assert LINEAR.guidance == "cfg 3"
    assert replace(EARLY, refiner_cfg=0.0).guidance == "cfg 3, off-after:3, refiner 0"
    assert SamplingConfig(cfg_schedule="0,1.5").guidance == "cfg 0,1.5"


@pytest.mark.parametrize("schedule", ["off-after:0", "off-after:-1", "cosine", "", "1,-0.5", "1,nan", "1,,2", "inf"])
def test_other_schedules_are_refused(schedule):
    with pytest.raises(InputError, match="cfg_schedule: expected linear, constant, off-after:k or a strength"):
        SamplingConfig(cfg_schedule=schedule)


def test_strengths_for_another_pyramid_are_refused():
    with pytest.raises(InputError, match="cfg_schedule: expected 10 strengths, one for each scale, got 3"):
        SamplingConfig(cfg_schedule="0,1,2").strengths(10)


def test_a_scale_that_the_pyramid_lacks_is_refused():
    with pytest.raises(InputError, match="cfg_schedule: expected off-after:k with k of 1 to 4, got off-after:9"):
        SamplingConfig(cfg_schedule="off-after:9").strengths(4)


def test_a_plain_setting_is_written_as_it_always_was():
    assert set(to_dict(LINEAR)) == {"cfg", "top_k", "top_p", "temperatures"}
    for config in (replace(EARLY, refiner_cfg=0.0), replace(LINEAR, cfg_schedule="0,1.5")):
        assert from_dict(SamplingConfig, to_dict(config)) == config


def test_rows_without_a_class_are_those_of_images_still_to_be_guided():
    strengths = [(0, 0, 0, 0), (0, 1, 0, 0), (0, 1, 2, 3), (0, 0, 1, 0)]
    assert guided_images(strengths, 0, 4) == [[2, 3, 1], [2, 3, 1], [2, 3], [2]]
    assert guided_images(strengths, 2, 4) == [[2, 3], [2]]
    assert guided_images(strengths, 0, 1) == [[]]  # of what guides later scales, this stage has nothing
    assert rows_of_scales([FREE, LINEAR, EARLY], 4, 0, 4) == [5, 5, 5, 4]


@pytest.fixture(scope="module")
def models():
    return tiny_var(3, seed=1), tiny_var(2, seed=2), tiny_vqvae().quantize


def batch_of(size: int):
    return torch.arange(size) % 3, uniforms(4, np.arange(size), sum(n * n for n in PATCH_NUMS))


def ids_of(models, sampling, rows=slice(None), draft_steps=2):
    drafter, refiner, quantizer = models
    labels, noise = batch_of(6)
    some = sampling[rows] if isinstance(sampling, list) else sampling
    prefix = draft(drafter, quantizer, labels[rows], noise[rows], draft_steps, some)
    return refine(refiner, quantizer, labels[rows], noise[rows], prefix, some)


@pytest.mark.parametrize(
    ("schedule", "same_as"),
    [
        ("0,1,2,3", LINEAR),
        ("off-after:4", LINEAR),
        ("off-after:1", FREE),
        ("0,0,0,0", FREE),
    ],
)
def test_equal_strengths_give_equal_ids(models, schedule, same_as):
    assert torch.equal(ids_of(models, replace(LINEAR, cfg_schedule=schedule)), ids_of(models, same_as))


def test_an_unguided_refiner_continues_a_guided_draft(models):
    drafter, refiner, quantizer = models
    labels, noise = batch_of(6)
    found = ids_of(models, replace(LINEAR, refiner_cfg=0.0))
    prefix = draft(drafter, quantizer, labels, noise, 2, LINEAR)
    assert torch.equal(found, refine(refiner, quantizer, labels, noise, prefix, FREE))
    assert not torch.equal(found, ids_of(models, LINEAR))


def test_guidance_that_ends_drops_the_rows_and_changes_no_scale_before(models):
    var, quantizer = models[0], models[2]
    labels, noise = batch_of(6)
    seen = []

    class Watching:
        def __getattr__(self, name):
            return getattr(var, name)

        def forwards(self, *args):
            forwards = var.forwards(*args)

            class Counting:
                def __enter__(self):
                    forward = forwards.__enter__()

                    def counted(x_RLC, sizes):
                        seen.append(len(x_RLC))
                        return forward(x_RLC, sizes)

                    return counted

                def __exit__(self, *error):
                    return forwards.__exit__(*error)

            return Counting()

    ids = list(decode_scales(Watching(), quantizer, labels, noise, noise[:, :0], K, EARLY))
    assert seen == [12, 12, 12, 6]
    linear = list(decode_scales(var, quantizer, labels, noise, noise[:, :0], K, LINEAR))
    assert torch.equal(ids[2], linear[2]) and not torch.equal(ids[3], linear[3])


def test_in_a_mixed_batch_each_image_has_its_own_rows_and_the_ids_that_it_has_alone(models):
    mixed = [LINEAR, FREE, EARLY, replace(LINEAR, cfg_schedule="constant"), replace(LINEAR, refiner_cfg=0.0), FREE]
    var, quantizer = models[0], models[2]
    labels, noise = batch_of(6)
    decode = Decode.of(var, quantizer, labels, noise, noise[:, :0], K, mixed)
    assert decode.guidance.rows == (10, 10, 10, 9)
    together = ids_of(models, mixed)
    for image in range(6):
        assert torch.equal(together[image], ids_of(models, mixed, slice(image, image + 1))[0])


@pytest.mark.parametrize("ends", [(1, 1, 1), (2, 2, 2), (3, 3, 3), (1, 2, 3), (4, 2, 2)])
def test_a_cache_that_narrows_changes_no_number(models, monkeypatch, ends):
    """Images whose guidance ends after other scales, beside a cache with room for all rows to the end."""
    var, quantizer = models[0], models[2]
    labels, noise = batch_of(3)
    sampling = [replace(LINEAR, cfg_schedule=",".join("2" * n + "0" * (K - n))) for n in ends]

    def numbers_of():
        decode = Decode.of(var, quantizer, labels, noise, noise[:, :0], K, sampling)
        return [(ids, total.item()) for ids, total in decode.scales(by_graphs=False)]

    narrowed = numbers_of()
    monkeypatch.setattr("tandem.scales.new_cache", partial(new_cache, narrows=False))
    for (ids, total), (same_ids, same_total) in zip(narrowed, numbers_of(), strict=True):
        assert torch.equal(ids, same_ids) and total == pytest.approx(same_total, rel=1e-6)
