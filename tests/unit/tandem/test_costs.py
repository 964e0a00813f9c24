"""Counted work and bytes: against the published numbers, and against what is really allocated."""

import pytest
import torch

from support.tiny_models import PATCH_NUMS, tiny_var, tiny_vqvae
from tandem.assembly import Preparation
from tandem.attention import KVCache
from tandem.config import VAR_PRESETS, VQVAE_PRESET, SamplingConfig
from tandem.costs import decode_flops, empty_var, kv_bytes, peak_bytes, scale_flops, tensor_bytes, var_bytes
from tandem.limits import pretend
from tandem.scales import decode_scales
from tandem_jobs.bench.decode_report import PAPER_CACHE_MB, PAPER_DRAFT_STEPS

CPU, CUDA, BF16 = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
D30, D16 = VAR_PRESETS["d30"], VAR_PRESETS["d16"]


def test_work_of_the_published_pair():
    assert sum(scale_flops(D30, 0, 8)) * 8 / 1e12 == pytest.approx(11.06, rel=1e-3)
    assert sum(scale_flops(D16, 8, 10)) * 8 / 1e12 == pytest.approx(4.74, rel=1e-3)
    assert decode_flops(VQVAE_PRESET) / 1e12 == pytest.approx(0.394, rel=1e-3)


@pytest.mark.parametrize("batch", PAPER_CACHE_MB)
def test_the_cache_is_at_most_half_of_the_papers(batch):
    plain_mb, code_mb = PAPER_CACHE_MB[batch]
    ours = [kv_bytes(D30, 2 * batch, 0, PAPER_DRAFT_STEPS, BF16, CUDA), kv_bytes(D16, 2 * batch, 6, 10, BF16, CUDA)]
    assert max(ours) <= 0.5e6 * code_mb
    if plain_mb is not None:
        assert kv_bytes(D30, 2 * batch, 0, 10, BF16, CUDA) <= 0.5e6 * plain_mb


def test_the_cache_by_hand():
    """The refiner at N = 6: 424 tokens of 16 layers, and a scratch of 680 tokens, K and V in bfloat16."""
    assert kv_bytes(D16, 2, 6, 10, BF16, CUDA) == (16 * 424 + 680) * 2 * 2 * 1024 * 2
    assert kv_bytes(D30, 2, 0, 6, BF16, CUDA) == (30 * 55 + 91) * 2 * 2 * 1920 * 2


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


@pytest.mark.parametrize("config", [D16, D30], ids=["d16", "d30"])
def test_folded_modulation_leaves_at_most_seven_tenths(config):
    with torch.inference_mode():
        plain, folded = (empty_var(config, BF16, Preparation(fold_adaln=fold)) for fold in (False, True))
    assert tensor_bytes(folded) <= 0.7 * tensor_bytes(plain)
    assert folded.table.num_bytes == 1001 * (6 * config.depth + 2) * config.width * 2
