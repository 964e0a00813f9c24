"""Counted work and bytes: against the published numbers, and against what is really allocated."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.tiny_models import PATCH_NUMS, tiny_var, tiny_vqvae
from tandem.assembly import Preparation, build_empty
from tandem.attention import KVCache
from tandem.config import VAR_PRESETS, VQVAE_PRESET, SamplingConfig
from tandem.counting.costs import decode_flops, empty_var, kv_bytes, peak_bytes, scale_flops, tensor_bytes, var_bytes
from tandem.limits import pretend
from tandem.scales import Decode, decode_scales
from tandem_jobs.bench.decode_report import MIB, PAPER_DRAFT_STEPS, PAPER_MEMORY

CPU, CUDA, BF16 = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
D30, D16 = VAR_PRESETS["d30"], VAR_PRESETS["d16"]


def test_work_of_the_published_pair():
    assert sum(scale_flops(D30, 0, 8)) * 8 / 1e12 == pytest.approx(11.06, rel=1e-3)
    assert sum(scale_flops(D16, 8, 10)) * 8 / 1e12 == pytest.approx(4.74, rel=1e-3)
    assert decode_flops(VQVAE_PRESET) / 1e12 == pytest.approx(0.394, rel=1e-3)


@pytest.mark.parametrize("batch", PAPER_MEMORY)
def test_the_cache_is_less_than_half_of_the_papers(batch):
    plain, code = PAPER_MEMORY[batch]
    ours = [
        kv_bytes(D30, [2 * batch] * 6, 0, PAPER_DRAFT_STEPS, BF16, CUDA),
        kv_bytes(D16, [2 * batch] * 4, 6, 10, BF16, CUDA),
    ]
    assert max(ours) / MIB / code.cache == pytest.approx(0.457, abs=0.004)
    if plain is not None:
        assert kv_bytes(D30, [2 * batch] * 10, 0, 10, BF16, CUDA) / MIB / plain.cache == pytest.approx(0.437, abs=0.002)


@pytest.mark.parametrize("batch", PAPER_MEMORY)
def test_the_papers_memory_is_in_units_of_2_to_the_20(batch):
    """Its weights are d30, d16 and VQVAE in float32; its cache has all 680 tokens, K in float32 and V in 16 bits."""
    vqvae = sum(p.numel() for p in build_empty(VQVAE_PRESET).parameters())
    for row, transformers, cached in zip(PAPER_MEMORY[batch], ((D30,), (D30, D16)), (D30, D16), strict=True):
        if row is not None:
            parameters = vqvae + sum(config.num_parameters for config in transformers)
            assert row.weights == pytest.approx(4 * parameters / MIB, rel=1e-3)
            assert row.cache == pytest.approx(2 * batch * 680 * cached.width * cached.depth * 6 / MIB, rel=0.01)
            assert row.total == pytest.approx(row.running + row.cache + row.weights, rel=0.025)


def test_the_cache_by_hand():
    """The refiner at N = 6: 424 tokens of 16 layers, and a scratch of 680 tokens, K and V in bfloat16."""
    assert kv_bytes(D16, [2] * 4, 6, 10, BF16, CUDA) == (16 * 424 + 680) * 2 * 2 * 1024 * 2
    assert kv_bytes(D30, [2] * 6, 0, 6, BF16, CUDA) == (30 * 55 + 91) * 2 * 2 * 1920 * 2


def test_a_cache_on_the_meta_device_is_as_large_as_a_real_one():
    config = tiny_var(2, seed=0).config
    with pretend(CPU):
        counted = KVCache(config, 4, 14, 30, torch.float32, torch.device("meta")).num_bytes
    assert KVCache(config, 4, 14, 30, torch.float32, CPU).num_bytes == counted > 0


def test_counted_bytes_are_those_of_a_real_decode():
    var, quantizer = tiny_var(3, seed=1), tiny_vqvae().quantize
    labels, noise = torch.arange(4), torch.zeros(4, 30, dtype=torch.int64)
    sampling = SamplingConfig(top_k=12)
    num_scales = len(PATCH_NUMS)

    def work():
        return list(decode_scales(var, quantizer, labels, noise, noise[:, :0], num_scales, sampling))

    counted = var_bytes(var.config, 4, 0, num_scales, torch.float32, CPU, Preparation(), sampling)
    assert counted.cache + counted.activations == pytest.approx(peak_bytes(work), rel=0.02)


@pytest.mark.parametrize("schedule", ["linear", "off-after:2", "0,0,0,2", "0,0,0,0"])
def test_bytes_of_a_schedule_are_those_of_a_real_decode(schedule):
    """One image follows the schedule, three are not guided."""
    var, quantizer = tiny_var(3, seed=1), tiny_vqvae().quantize
    labels, noise = torch.arange(4), torch.zeros(4, 30, dtype=torch.int64)
    sampling = [SamplingConfig(cfg=3.0, cfg_schedule=schedule), *[SamplingConfig(cfg=0.0)] * 3]

    def work():
        return list(decode_scales(var, quantizer, labels, noise, noise[:, :0], 4, sampling))

    counted = var_bytes(var.config, 4, 0, 4, torch.float32, CPU, Preparation(), sampling)
    assert counted.cache + counted.activations == pytest.approx(peak_bytes(work), rel=0.02)
    rows = {"off-after:2": [5, 5, 4, 4], "0,0,0,0": [4] * 4}.get(schedule, [5] * 4)
    assert counted.cache == kv_bytes(var.config, rows, 0, 4, torch.float32, CPU)


def test_rows_that_have_served_leave_the_cache():
    """D30, scales 1 to 8: 255 tokens, of which the last 100 pass through a scratch. The cache is the larger of two rows
    until they drop and of one row to the end."""
    wide, token = 255, 2 * 1920 * 2
    assert kv_bytes(D30, [1] * 8, 0, 8, BF16, CUDA) == (30 * 155 + wide) * token
    assert kv_bytes(D30, [2] * 5 + [1] * 3, 0, 8, BF16, CUDA) == (30 * 155 + wide) * token  # 2 x 55 are fewer
    assert kv_bytes(D30, [2] * 6 + [1] * 2, 0, 8, BF16, CUDA) == (30 * 2 * 91 + wide) * token
    assert kv_bytes(D30, [2] * 7 + [1], 0, 8, BF16, CUDA) == (30 * 2 * 155 + wide) * token
    assert kv_bytes(D30, [2] * 8, 0, 8, BF16, CUDA) == (30 * 2 * 155 + 2 * wide) * token


def test_work_follows_the_rows_of_each_scale():
    guided, free = scale_flops(D16, 6, 10, 2), scale_flops(D16, 6, 10, 1)
    assert scale_flops(D16, 6, 10, [2, 2, 1, 1]) == [*guided[:2], *free[2:]]


@pytest.mark.parametrize("config", [D16, D30], ids=["d16", "d30"])
def test_folded_modulation_leaves_at_most_seven_tenths(config):
    with torch.inference_mode():
        plain, folded = (empty_var(config, BF16, Preparation(fold_adaln=fold)) for fold in (False, True))
    assert tensor_bytes(folded) <= 0.7 * tensor_bytes(plain)
    assert folded.table.num_bytes == 1001 * (6 * config.depth + 2) * config.width * 2


GUIDED, FREE = SamplingConfig(cfg=3.0), SamplingConfig(cfg=0.0)


@pytest.mark.parametrize(
    ("config", "start", "stop", "dtype", "device"),
    [
        (D16, 0, 6, BF16, CUDA),
        (tiny_var(3, seed=1).config, 0, 3, torch.float32, CPU),
        (tiny_var(3, seed=1).config, 2, 4, torch.float32, CPU),
    ],
)
def test_without_guidance_cache_and_work_are_exactly_half(config, start, stop, dtype, device):
    guided, free = (sum(scale_flops(config, start, stop, rows)) for rows in (2, 1))
    assert guided == 2 * free
    counted = [var_bytes(config, 2, start, stop, dtype, device, Preparation(), sampling) for sampling in (GUIDED, FREE)]
    assert counted[0].cache == 2 * counted[1].cache > 0
    assert counted[0].weights == counted[1].weights and counted[0].activations > counted[1].activations


def test_without_guidance_a_decode_computes_half_but_for_its_ends():
    """Both rows of an image share the embedded tokens, and the head, as guidance mixes hidden states."""
    var, quantizer = tiny_var(3, seed=1), tiny_vqvae().quantize
    labels, pyramid = torch.zeros(2, dtype=torch.int64), var.config.pyramid
    noise = torch.zeros(2, pyramid.num_tokens, dtype=torch.int64)
    embedded, sampled = pyramid.num_tokens - pyramid.offsets[1], pyramid.num_tokens
    ends = var.config.latent_channels * embedded + var.config.vocab_size * sampled
    rows, flops, shared = [], [], 2 * len(labels) * var.config.width * ends
    for sampling in (GUIDED, FREE):
        decode = Decode.of(var, quantizer, labels, noise, noise[:, :0], pyramid.num_scales, sampling)
        rows.append(len(decode.labels_R))
        with FlopCounterMode(display=False) as counter:
            decode.tokens()
        products = counter.get_flop_counts()["Global"]
        flops.append(sum(n for op, n in products.items() if "conv" not in str(op)) - shared)
    assert rows == [4, 2] and flops[0] == 2 * flops[1] > 0
