"""Graphs of decoding: what is captured, kept and copied, with a stand-in for CUDA's on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import PATCH_NUMS, tiny_var, tiny_vqvae
from torch import Tensor

from tandem.assembly import Preparation, assemble_var
from tandem.collaborative import decode_scales, generate_alone, refine
from tandem.config import SamplingConfig
from tandem.graphs import Graphs, Replay
from tandem.prefix import Prefix
from tandem.sampling import uniforms
from tandem.var import Var

SAMPLING = SamplingConfig(cfg=2.0, top_k=20, top_p=0.95)
NUM_TOKENS = sum(n * n for n in PATCH_NUMS)
K = len(PATCH_NUMS)
VQVAE = tiny_vqvae()


class FakeCapture:
    """Runs the work in a warm-up and while it captures; a replay runs it again into the same tensor."""

    def __init__(self, fails_at: int | None = None):
        self.captured = self.replayed = 0
        self.fails_at = fails_at

    def __call__(self, work: Callable[[], Tensor]) -> Replay:
        work()
        if self.captured == self.fails_at:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.captured += 1
        out = torch.full_like(work(), torch.nan)  # what is captured is not computed

        def replay() -> Tensor:
            self.replayed += 1
            return out.copy_(work())

        return replay


def with_graphs(fails_at: int | None = None) -> tuple[Var, FakeCapture]:
    var, capture = tiny_var(depth=2, seed=1), FakeCapture(fails_at)
    var.graphs = Graphs(capture)
    return var, capture


@pytest.fixture(autouse=True)
def captured_at_once(monkeypatch):
    monkeypatch.setattr("tandem.graphs.FIRST_CAPTURED", 1)


@pytest.fixture(scope="module")
def plain() -> Var:
    return tiny_var(depth=2, seed=1)


def ids_of(var: Var, labels: list[int], seed: int) -> Tensor:
    noise = uniforms(seed, np.arange(len(labels)), NUM_TOKENS)
    return generate_alone(var, VQVAE, torch.tensor(labels), noise, SAMPLING)[1]


def test_later_batches_of_other_classes_give_what_plain_decoding_gives(plain):
    var, capture = with_graphs()
    for seed, labels in enumerate(([0, 1, 2], [3, 3, 1], [2, 0, 0])):
        assert torch.equal(ids_of(var, labels, seed), ids_of(plain, labels, seed))
    assert (capture.captured, capture.replayed) == (K, 3 * K)


def test_each_batch_size_has_its_graphs(plain):
    var, capture = with_graphs()
    for seed, labels in enumerate(([0, 1, 2], [3], [2, 0, 0], [1])):
        assert torch.equal(ids_of(var, labels, seed), ids_of(plain, labels, seed))
    assert (capture.captured, capture.replayed) == (2 * K, 4 * K)


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
    assert capture.captured == capture.replayed == K


def test_a_decode_that_is_given_up_leaves_its_place_to_the_next(plain):
    var, capture = with_graphs()
    noise = uniforms(5, np.arange(2), NUM_TOKENS)
    scales = decode_scales(var, VQVAE.quantize, torch.tensor([0, 1]), noise, noise[:, :0], K, SAMPLING)
    next(scales), next(scales)
    scales.close()
    assert torch.equal(ids_of(var, [2, 3], 6), ids_of(plain, [2, 3], 6))
    assert (capture.captured, capture.replayed) == (K, K + 2)


@pytest.mark.parametrize("fails_at", range(K))
def test_what_cannot_be_captured_runs_plainly_with_one_warning(plain, fails_at):
    var, capture = with_graphs(fails_at)
    with pytest.warns(UserWarning, match=r"^cuda-graphs: RuntimeError: operation .* is capturing; going on") as seen:
        found = [ids_of(var, [0, 1], seed) for seed in range(2)]
    assert len(seen) == 1
    for seed, ids in enumerate(found):
        assert torch.equal(ids, ids_of(plain, [0, 1], seed))
    assert (capture.captured, capture.replayed) == (fails_at, fails_at)
    assert var.graphs is not None and not var.graphs.places


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
    assert sorted(rows for rows, *_ in var.graphs.places) == [4, 6]
    assert torch.equal(ids_of(var, [1, 2, 0], 3), ids_of(plain, [1, 2, 0], 3))
    assert capture.captured == K * 3


def test_without_cuda_the_model_says_so_and_is_plain(plain):
    values = dict(plain.named_parameters()).__getitem__
    how, cpu = Preparation(cuda_graphs=True), torch.device("cpu")
    with pytest.warns(UserWarning, match=r"^cuda-graphs: expected a CUDA device, got cpu; going on without them$"):
        var = assemble_var(plain.config, values, torch.float32, cpu, how)
    assert var.graphs is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # counting costs asks for a model on no device
        assert assemble_var(plain.config, values, torch.float32, torch.device("meta"), how).graphs is None
