"""Draws depend on (seed, index, position) alone and follow the filtered distribution."""

import numpy as np
import pytest
import torch

from support.reference import probabilities
from tandem import sampling as module
from tandem.config import SamplingConfig
from tandem.sampling import (
    UNIFORM_BITS,
    WEIGHT_BITS,
    RowGroups,
    candidates,
    draw,
    draw_code,
    fixed_point,
    largest,
    sample,
    uniforms,
    weight_of,
)

FILTERED = SamplingConfig(top_k=12, top_p=0.9)


def test_a_stream_belongs_to_an_image_and_not_to_its_batch():
    together = uniforms(5, np.array([3, 8, 1]), 40)
    alone = uniforms(5, np.array([8]), 40)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(uniforms(5, np.array([8]), 10), alone[:, :10])  # position in the stream = token position
    assert not torch.equal(uniforms(6, np.array([8]), 40), alone)
    assert len(torch.unique(together)) == together.numel()
    assert together.min() >= 0
    assert together.max() < 2**UNIFORM_BITS


def test_streams_are_the_same_on_every_platform():
    """Philox is specified; these numbers would change only with another generator or key."""
    first = uniforms(0, np.array([0, 1]), 2).tolist()
    assert first == uniforms(0, np.array([0, 1]), 2).tolist()
    expected = np.random.Philox(key=np.array([0, 1], dtype=np.uint64)).random_raw(2) >> np.uint64(33)
    assert first[1] == expected.tolist()


def test_large_seeds_and_indices_have_streams_of_their_own():
    seeds = [0, 1, 2**32, 2**63 - 1]
    streams = {tuple(uniforms(s, np.array([i]), 4)[0].tolist()) for s in seeds for i in (0, 2**32, 2**40)}
    assert len(streams) == len(seeds) * 3


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    keep = expected > 0
    assert counts[~keep].sum() == 0, "a code that was filtered out has been drawn"
    return float(((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_draws_follow_the_filtered_distribution(seed):
    """Chi-square over 30,000 images; the bound is the 99.99 % quantile for the degrees of freedom at hand."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 1, 40, generator=generator) * 1.5
    probability = probabilities(logits, FILTERED, temperature=1.1)
    images = 30_000
    u = uniforms(seed, np.arange(images), 3)[:, 2:]
    ids = draw(probability.expand(images, 1, 40), u)
    counts = np.bincount(ids.flatten().numpy(), minlength=40).astype(float)
    kept = int((probability > 0).sum())
    assert 2 < kept <= 12
    # Wilson-Hilferty: chi-square quantile from the normal one (3.719 at 99.99 %)
    k = kept - 1
    bound = k * (1 - 2 / (9 * k) + 3.719 * (2 / (9 * k)) ** 0.5) ** 3
    assert chi_square(counts, probability.flatten().numpy().astype(float) * images) < bound


def test_a_biased_draw_would_be_noticed():
    """The same test on draws with a shifted distribution fails by far, so it can fail."""
    probability = torch.tensor([[[0.5, 0.3, 0.2]]])
    wrong = torch.tensor([[[0.48, 0.32, 0.2]]])
    ids = draw(wrong.expand(30_000, 1, 3), uniforms(1, np.arange(30_000), 1))
    counts = np.bincount(ids.flatten().numpy(), minlength=3).astype(float)
    assert chi_square(counts, probability.flatten().numpy().astype(float) * 30_000) > 20


def test_the_ends_of_the_uniform_range_draw_codes_with_weight():
    probability = torch.tensor([[[0.0, 0.25, 0.0, 0.75, 0.0]]])
    low, high = torch.tensor([[0]]), torch.tensor([[2**UNIFORM_BITS - 1]])
    assert draw(probability, low).item() == 1
    assert draw(probability, high).item() == 3


def test_fixed_point_sums_do_not_depend_on_order():
    probability = torch.softmax(torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0)) * 3, -1)
    weight = fixed_point(probability)
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(1))
    assert weight.sum() == weight[..., order].sum()
    assert abs(weight.sum().item() / 2**30 - 1) < 1e-5


def test_top_k_one_is_greedy_and_reads_no_randomness():
    logits = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    greedy = SamplingConfig(top_k=1)
    for u in (0, 2**UNIFORM_BITS - 1):
        ids = sample(logits, torch.full((2, 3), u), greedy, scale=0)
        assert torch.equal(ids, logits.argmax(-1))


def test_temperature_acts_after_the_masks():
    """Top-p keeps the same codes whatever the temperature."""
    logits = torch.randn(4, 5, 50, generator=torch.Generator().manual_seed(0)) * 2
    cold, hot = (probabilities(logits, FILTERED, t) for t in (0.5, 2.0))
    assert torch.equal(cold > 0, hot > 0)
    several = (cold > 0).sum(-1) > 1
    assert several.any()
    assert (cold.max(-1).values > hot.max(-1).values)[several].all()


def test_the_last_temperature_repeats():
    sampling = SamplingConfig()
    assert [sampling.temperature(k) for k in (0, 6, 7, 9)] == [1.1, 1.1, 1.0, 1.0]


def test_rows_that_are_sampled_alike_are_grouped_and_every_row_is_in_one_group():
    free, guided = SamplingConfig(cfg=0.0), SamplingConfig(cfg=3.0)
    groups = RowGroups([free, guided, SamplingConfig(cfg=0.0), guided, FILTERED], torch.device("cpu"))
    for (start, stop), expected in {
        (0, 5): [(free, [0, 2]), (guided, [1, 3]), (FILTERED, [4])],
        (1, 3): [(free, [1]), (guided, [0])],
        (4, 5): [(FILTERED, [0])],
    }.items():
        assert [(config, rows.tolist()) for config, rows in groups.among(start, stop)] == expected


def test_row_numbers_are_not_sent_to_the_device_at_every_scale(monkeypatch):
    groups = RowGroups([FILTERED, SamplingConfig()], torch.device("cpu"))
    monkeypatch.setattr(torch, "tensor", None)
    assert [rows.tolist() for _, rows in groups.among(0, 2)] == [[0], [1]]


def test_a_batch_that_is_sampled_alike_is_one_group_and_is_not_gathered():
    alike = [FILTERED, SamplingConfig(top_k=12, top_p=0.9)]
    assert list(RowGroups(alike, torch.device("cpu")).among(0, 2)) == [(FILTERED, slice(None))]


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_looking_at_the_largest_logits_first_draws_what_sorting_all_draws(spread, temperature, monkeypatch):
    """From codes that are all alike, of which none is enough, to one that has everything; with equal logits."""
    generator = torch.Generator().manual_seed(7)
    logits = (torch.randn(4, 50, 256, generator=generator) * spread).mul(8).round().div(8)
    noise = torch.randint(2**UNIFORM_BITS, (4, 50), generator=generator)
    config, found = SamplingConfig(top_k=0, top_p=0.9, temperatures=(temperature,)), []

    def watched(*args):
        result = nucleus(*args)
        found.append(result[1].float().mean().item())
        return result

    nucleus = module.nucleus
    monkeypatch.setattr(module, "nucleus", watched)
    ids = sample(logits, noise, config, 0)
    assert (found[0] == 0.0) if spread < 0.2 else (found[0] > 0.9) if spread > 3 else (0.0 <= found[0] < 1.0)
    assert torch.equal(ids, draw_code(*candidates(logits, config, temperature), noise))


def test_a_token_is_drawn_alike_in_any_batch():
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(2, 40, 256, generator=generator) * torch.linspace(0, 6, 40)[:, None]
    noise = torch.randint(2**UNIFORM_BITS, (2, 40), generator=generator)
    config = SamplingConfig(top_k=0, top_p=0.9)
    together = sample(logits, noise, config, 0)
    alone = [sample(logits[:, i : i + 1], noise[:, i : i + 1], config, 0) for i in range(40)]
    assert torch.equal(together, torch.cat(alone, dim=1))


def drawn_by_torch(logits_nV, uniform_n, top_p, temperature, few):
    """What `sample` does under top-p, in the way that is plain in torch: sorts of values with indices, and masks."""

    def weights(probability):
        return (probability.double() * 2**WEIGHT_BITS).round().long()

    def draw_of(logits, ids, uniform):
        cdf = weights((logits / temperature).softmax(-1)).gather(-1, ids.argsort(-1)).cumsum(-1)
        drawn = torch.searchsorted(cdf, (uniform[:, None] * cdf[:, -1:]) >> UNIFORM_BITS, right=True)
        return ids.sort(-1).values.gather(-1, drawn).squeeze(-1)

    def least(falling, probability):
        kept = (weights(probability).cumsum(-1) - weights(probability) < top_p * 2**WEIGHT_BITS).sum(-1, keepdim=True)
        return falling.gather(-1, kept - 1)

    head, ids = logits_nV.topk(few, dim=-1)
    probability = logits_nV.softmax(-1).gather(-1, ids)
    bound = least(head, probability)
    found = (weights(probability).sum(-1, keepdim=True) >= top_p * 2**WEIGHT_BITS) & (head[:, -1:] < bound)
    by_head = draw_of(head.masked_fill(head < bound, -torch.inf), ids, uniform_n)
    falling = logits_nV.sort(-1, descending=True).values
    whole = logits_nV.masked_fill(logits_nV < least(falling, falling.softmax(-1)), -torch.inf)
    by_all = draw_of(whole, torch.arange(logits_nV.shape[-1]).expand_as(whole), uniform_n)
    return torch.where(found.squeeze(-1), by_head, by_all)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spread", [0.3, 1.5, 4.0])
def test_draws_on_a_cpu_are_those_of_torchs_own_sorting(spread, threads, monkeypatch):
    """Datasets that were begun with it are completed with the same bytes."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(3, 100, 512, generator=generator) * spread
    logits[..., ::5] = (logits[..., ::5] * 4).round() / 4  # equal ones, also 0 and -0
    noise = torch.randint(2**UNIFORM_BITS, (3, 100), generator=generator)
    for top_p, temperature in ((0.9, 1.0), (0.5, 0.7), (0.999, 1.1)):
        config = SamplingConfig(top_k=0, top_p=top_p, temperatures=(temperature,))
        expected = drawn_by_torch(logits.flatten(0, 1), noise.flatten(), top_p, temperature, 512 // module.HEAD_SHARE)
        assert torch.equal(sample(logits, noise, config, 0).flatten(), expected)


def test_the_largest_logits_are_those_of_topk():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(2)).mul(16).round().div(16)
    logits[0, :2] = torch.tensor([torch.inf, -torch.inf])
    found, ids = largest(logits, 40)
    assert torch.equal(found, logits.topk(40, dim=-1).values)
    assert torch.equal(found, logits.gather(-1, ids)) and all(len(row.unique()) == 40 for row in ids)


@pytest.mark.parametrize("top_p", [1e-12, 0.1, 0.5, 0.9, 0.96, 0.999, 1 - 1e-9])
def test_top_p_in_whole_numbers_is_compared_as_torch_compares_it(top_p):
    weight, enough = weight_of(top_p), top_p * 2**WEIGHT_BITS
    around = torch.arange(max(weight - 200, 0), weight + 200)
    assert torch.equal(around < weight, around < enough) and torch.equal(around >= weight, around >= enough)
