"""Graphs of decoding: what is captured, kept and copied, with a stand-in for CUDA's on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from support.tiny_models import PATCH_NUMS, tiny_var, tiny_vqvae
from tandem.assembly import Preparation, assemble_var
from tandem.collaborative import decode, draft, generate_alone, refine
from tandem.config import SamplingConfig
from tandem.edit_source import Source
from tandem.errors import JobError
from tandem.graphs import MOST_SEEN, Graphs, Replay, ShapeCache, Tensors
from tandem.prefix import Prefix
from tandem.sampling import uniforms
from tandem.scales import Decode, decode_scales
from tandem.var import Var

SAMPLING = SamplingConfig(cfg=2.0, top_k=20, top_p=0.95)
EARLY = replace(SAMPLING, cfg_schedule="2,2,0,0")  # the cache narrows
NUM_TOKENS = sum(n * n for n in PATCH_NUMS)
K = len(PATCH_NUMS)
VQVAE = tiny_vqvae()


class FakeCapture:
    """Runs the work in a warm-up and while it captures; a replay runs it again into the same tensors."""

    def __init__(self, fails_at: int | None = None, wrong: bool = False):
        self.captured = self.replayed = 0
        self.fails_at, self.wrong = fails_at, wrong

    def __call__(self, work: Callable[[], Tensors]) -> Replay:
        work()
        if self.captured == self.fails_at:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.captured += 1
        outs = tuple(torch.full_like(tensor, -1) for tensor in work())  # what is captured is not computed

        def replay() -> Tensors:
            self.replayed += 1
            for out, made in zip(outs, work(), strict=True):
                out.copy_(made + self.wrong)
            return outs

        return replay


def with_graphs(whole: bool = False, **capture_options: Any) -> tuple[Var, FakeCapture]:
    """A model with graphs: of whole decodes, or of scales alone."""
    var, capture = tiny_var(depth=2, seed=1), FakeCapture(**capture_options)
    var.graphs = Graphs(capture)
    var.graphs.captures_whole = whole
    return var, capture


@pytest.fixture(autouse=True)
def captured_at_once(monkeypatch):
    monkeypatch.setattr("tandem.graphs.FIRST_CAPTURED", 1)


@pytest.fixture(scope="module")
def plain() -> Var:
    return tiny_var(depth=2, seed=1)


def ids_of(
    var: Var, labels: list[int], seed: int, sampling: SamplingConfig = SAMPLING, source: Source | None = None
) -> Tensor:
    noise = uniforms(seed, np.arange(len(labels)), NUM_TOKENS)
    return generate_alone(var, VQVAE, torch.tensor(labels), noise, sampling, source)[1]


def source_of(plain: Var, batch: int, seed: int) -> Source:
    """Sources of a batch, half of whose cells are kept."""
    ids = ids_of(plain, [seed] * batch, seed + 9)
    drawn = torch.rand(batch, PATCH_NUMS[-1], PATCH_NUMS[-1], generator=torch.Generator().manual_seed(seed)) < 0.5
    return Source(ids, drawn)


@pytest.mark.parametrize("sampling", [SAMPLING, EARLY])
def test_a_whole_decode_is_one_launch_for_any_classes_and_seeds(plain, sampling):
    var, capture = with_graphs(whole=True)
    for seed, labels in enumerate(([0, 1, 2], [3, 3, 1], [2, 0, 0])):
        assert torch.equal(ids_of(var, labels, seed, sampling), ids_of(plain, labels, seed, sampling))
    assert (capture.captured, capture.replayed) == (1, 3 + 1)  # the first replay proves the graph


def test_draft_and_refine_are_one_launch_each(plain):
    var, capture = with_graphs(whole=True)
    for seed in range(3):
        noise, labels = uniforms(seed, np.arange(2), NUM_TOKENS), torch.tensor([seed, 1])
        prefix, expected = (draft(model, VQVAE.quantize, labels, noise, 2, SAMPLING) for model in (var, plain))
        np.testing.assert_array_equal(prefix.tokens, expected.tokens)
        found, expected = (refine(model, VQVAE.quantize, labels, noise, prefix, SAMPLING) for model in (var, plain))
        assert torch.equal(found, expected)
    assert (capture.captured, capture.replayed) == (2, 2 * (3 + 1))


def test_each_way_of_sampling_has_its_graph_and_what_was_given_out_stays(plain):
    var, capture = with_graphs(whole=True)
    settings = [SAMPLING, SamplingConfig(cfg=0.0), [SAMPLING, SamplingConfig(cfg=0.0)], [SamplingConfig(), SAMPLING]]
    found = [ids_of(var, [1, 2], 5, sampling) for sampling in settings * 2]
    for ids, sampling in zip(found, settings * 2, strict=True):
        assert torch.equal(ids, ids_of(plain, [1, 2], 5, sampling))
    assert capture.captured == len(settings)


def test_a_graph_reads_no_tensor_of_the_batch_that_it_was_captured_with(plain, monkeypatch):
    """They are freed, and their memory holds something else when the graph is replayed."""
    decodes = []

    def recorded(*arguments: Any) -> Decode:
        decodes.append(Decode(*arguments))
        return decodes[-1]

    monkeypatch.setattr("tandem.scales.Decode.of", partial(Decode.of.__func__, recorded))
    var, capture = with_graphs(whole=True)
    sampling = [SAMPLING, SamplingConfig(cfg=0.0), SAMPLING]
    for seed in range(2):
        assert torch.equal(ids_of(var, [0, 1, 2], seed, sampling), ids_of(plain, [0, 1, 2], seed, sampling))
        for decode_ in decodes:
            rows = [value for value in flat(vars(decode_.groups)) if isinstance(value, Tensor)]
            with torch.inference_mode():
                for tensor in (*decode_.tensors, *rows):
                    tensor.zero_()
    assert len(decodes) == 4 and capture.captured == 1


def flat(value: Any) -> list[Any]:
    """What containers hold, in any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    return [inner for item in value for inner in flat(item)] if isinstance(value, list | tuple) else [value]


def test_ways_of_sampling_that_come_once_are_not_remembered_for_ever(monkeypatch):
    monkeypatch.setattr("tandem.graphs.FIRST_CAPTURED", 2)
    kept: ShapeCache[str] = ShapeCache()
    for shape in range(3 * MOST_SEEN):
        assert kept.get(shape, lambda: "made") is None
    assert len(kept.seen) <= MOST_SEEN
    assert kept.get(3 * MOST_SEEN - 1, lambda: "made") == "made"


def test_vectors_from_a_table_go_into_the_graph(plain):
    values = dict(plain.named_parameters()).__getitem__
    preparation = Preparation(fold_adaln=True)
    folded, with_graph = (
        assemble_var(plain.config, values, torch.float32, torch.device("cpu"), preparation) for _ in range(2)
    )
    with_graph.graphs = Graphs(FakeCapture())
    for seed, labels in enumerate(([0, 1], [3, 3])):
        assert torch.equal(ids_of(with_graph, labels, seed), ids_of(folded, labels, seed))


def test_edits_have_graphs_of_their_own_into_which_their_sources_go(plain):
    var, capture = with_graphs(whole=True)
    vqvae = tiny_vqvae()
    vqvae.graphs = Graphs(capture)
    for seed in range(3):
        source = source_of(plain, 2, seed)
        ids = ids_of(var, [0, 1], seed, source=source)
        assert torch.equal(ids, ids_of(plain, [0, 1], seed, source=source))
        assert torch.equal(decode(vqvae, ids, source), decode(VQVAE, ids, source))
        assert torch.equal(ids_of(var, [0, 1], seed), ids_of(plain, [0, 1], seed))
        with torch.inference_mode():  # a graph that read them would show it in the next round
            source.ids_BL.zero_()
            source.drawn_Bhw.zero_()
    assert capture.captured == 3  # tokens of edits, their pixels, tokens of images


def test_pixels_are_one_launch(plain):
    vqvae, capture = tiny_vqvae(), FakeCapture()
    vqvae.graphs = Graphs(capture)
    made = []
    for seed in range(2):
        ids = ids_of(plain, [0, 1], seed)
        made.append((decode(vqvae, ids), decode(VQVAE, ids)))
    assert all(torch.equal(found, expected) for found, expected in made)
    assert (capture.captured, capture.replayed) == (1, 3)


def test_a_graph_that_gives_other_values_is_not_used(plain):
    var, capture = with_graphs(whole=True, wrong=True)
    with pytest.warns(UserWarning, match="cuda-graphs: RuntimeError: a graph gives other values") as seen:
        found = [ids_of(var, [0, 1], seed) for seed in range(2)]
    assert len(seen) == 2  # of whole decodes, then of scales
    assert all(torch.equal(ids, ids_of(plain, [0, 1], seed)) for seed, ids in enumerate(found))
    assert capture.captured == 2


def test_logits_that_are_no_numbers_are_an_error_with_graphs_too():
    var, _ = with_graphs(whole=True)
    var.class_emb.weight[0] = torch.nan
    for _ in range(2):
        with pytest.raises(JobError, match="not finite"):
            ids_of(var, [0, 1], 0)
    assert ids_of(var, [1, 2], 0).shape == (2, NUM_TOKENS)


@pytest.mark.parametrize("sampling", [SAMPLING, EARLY])
def test_later_batches_of_other_classes_give_what_plain_decoding_gives(plain, sampling):
    var, capture = with_graphs()
    for seed, labels in enumerate(([0, 1, 2], [3, 3, 1], [2, 0, 0])):
        assert torch.equal(ids_of(var, labels, seed, sampling), ids_of(plain, labels, seed, sampling))
    assert (capture.captured, capture.replayed) == (K, 3 * K + K)


def test_each_batch_size_has_its_graphs(plain):
    var, capture = with_graphs()
    for seed, labels in enumerate(([0, 1, 2], [3], [2, 0, 0], [1])):
        assert torch.equal(ids_of(var, labels, seed), ids_of(plain, labels, seed))
    assert (capture.captured, capture.replayed) == (2 * K, 4 * K + 2 * K)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_scales_behind_a_prefix_are_captured_too(plain, steps):
    var, capture = with_graphs()
    for seed in range(2):
        ids, noise = ids_of(plain, [0, 1], seed), uniforms(seed, np.arange(2), NUM_TOKENS)
        prefix = Prefix.from_ids(ids[:, : sum(n * n for n in PATCH_NUMS[:steps])], steps)
        found = refine(var, VQVAE.quantize, torch.tensor([0, 1]), noise, prefix, SAMPLING)
        assert torch.equal(found, refine(plain, VQVAE.quantize, torch.tensor([0, 1]), noise, prefix, SAMPLING))
    assert capture.captured == K - steps


def test_two_decodes_at_once_do_not_share_a_cache(plain):
    """The endpoint can hold a batch between two scales while another of its shape goes on."""
    var, capture = with_graphs()
    noises = [uniforms(seed, np.arange(2), NUM_TOKENS) for seed in range(2)]
    labels = [torch.tensor([0, 1]), torch.tensor([3, 2])]
    decodes = [
        decode_scales(var, VQVAE.quantize, label, noise, noise[:, :0], K, SAMPLING)
        for label, noise in zip(labels, noises, strict=True)
    ]
    for pair in zip(*decodes, strict=True):
        last = pair
    for found, label, noise in zip(last, labels, noises, strict=True):
        assert torch.equal(found, generate_alone(plain, VQVAE, label, noise, SAMPLING)[1])
    assert (capture.captured, capture.replayed) == (K, 2 * K)


def test_a_decode_that_is_given_up_leaves_its_place_to_the_next(plain):
    var, capture = with_graphs()
    noise = uniforms(5, np.arange(2), NUM_TOKENS)
    scales = decode_scales(var, VQVAE.quantize, torch.tensor([0, 1]), noise, noise[:, :0], K, SAMPLING)
    next(scales), next(scales)
    scales.close()
    assert torch.equal(ids_of(var, [2, 3], 6), ids_of(plain, [2, 3], 6))
    assert (capture.captured, capture.replayed) == (K, K + 2 + K)


@pytest.mark.parametrize("fails_at", range(K))
def test_what_cannot_be_captured_runs_plainly_with_one_warning(plain, fails_at):
    var, capture = with_graphs(fails_at=fails_at)
    with pytest.warns(UserWarning, match=r"^cuda-graphs: RuntimeError: operation .* is capturing; going on") as seen:
        found = [ids_of(var, [0, 1], seed) for seed in range(2)]
    assert len(seen) == 1
    for seed, ids in enumerate(found):
        assert torch.equal(ids, ids_of(plain, [0, 1], seed))
    assert (capture.captured, capture.replayed) == (fails_at, 2 * fails_at)
    assert var.graphs is not None and not var.graphs.scale_graphs.items


def test_a_shape_that_comes_once_is_not_captured(plain, monkeypatch):
    monkeypatch.setattr("tandem.graphs.FIRST_CAPTURED", 2)
    var, capture = with_graphs()
    captured = []
    for batch in (1, 2, 1, 2, 1):
        assert torch.equal(ids_of(var, [0] * batch, 0), ids_of(plain, [0] * batch, 0))
        captured.append(capture.captured)
    assert captured == [0, 0, K, 2 * K, 2 * K]


def test_more_shapes_than_there_is_room_for_do_not_push_each_other_out(plain, monkeypatch):
    """Sizes times the N that clients choose: capturing takes longer than decoding."""
    monkeypatch.setattr("tandem.graphs.MOST_SHAPES", 2)
    var, capture = with_graphs()
    for round_ in range(3):
        for batch in (1, 2, 3):
            assert torch.equal(ids_of(var, [1] * batch, round_), ids_of(plain, [1] * batch, round_))
    assert capture.captured == 2 * K


def test_a_shape_that_has_been_idle_for_long_makes_room(plain, monkeypatch):
    monkeypatch.setattr("tandem.graphs.MOST_SHAPES", 2)
    monkeypatch.setattr("tandem.graphs.IDLE_DECODES", 3)
    var, capture = with_graphs()
    assert var.graphs is not None
    for batch in (1, 2, 2, 2, 3, 3):
        ids_of(var, [0] * batch, 0)
    assert sorted(rows for rows, *_ in var.graphs.scale_graphs.items) == [4, 6]
    assert torch.equal(ids_of(var, [1, 2, 0], 3), ids_of(plain, [1, 2, 0], 3))
    assert capture.captured == K * 3


def test_without_cuda_the_model_says_so_and_is_plain(plain):
    values = dict(plain.named_parameters()).__getitem__
    preparation, cpu = Preparation(cuda_graphs=True), torch.device("cpu")
    with pytest.warns(UserWarning, match=r"^cuda-graphs: expected a CUDA device, got cpu; going on without them$"):
        var = assemble_var(plain.config, values, torch.float32, cpu, preparation)
    assert var.graphs is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # counting costs asks for a model on no device
        assert assemble_var(plain.config, values, torch.float32, torch.device("meta"), preparation).graphs is None
