"""Drafter and refiner as stages, without a cluster: cuts, padding, threads, dtype."""

import pickle
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from support.stage_inputs import rows, settings
from support.tiny_models import NUM_CLASSES, PATCH_NUMS
from tandem.assembly import Preparation
from tandem.config import SamplingConfig
from tandem.errors import InputError, JobError
from tandem.sampling import uniforms
from tandem_cluster.placement import Placement
from tandem_jobs.bench.bench_pipeline import Rows
from tandem_jobs.options.spec import parse
from tandem_jobs.refine import RefineSpec
from tandem_jobs.run.decode_choices import check_gpus_here, check_preparation, choose_settings
from tandem_jobs.run.pipeline import generate_pools
from tandem_workers.dataset.identity import decoding_identity
from tandem_workers.dataset.shards import ShardPlan, ShardRows
from tandem_workers.stages import ray_data
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.ray_data import FINISHER, StageActor
from tandem_workers.stages.refiner import Refiner, to_uint8
from tandem_workers.stages.shard_batches import fixed_batches


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_batch_has_one_shape_and_the_last_is_padded_with_its_last_row(models):
    batches = list(fixed_batches(rows(10, 7), settings(), models.drafter_config, torch.device("cpu")))
    assert [(b.rows_B.tolist(), b.num_rows, len(b.labels_B), len(b.uniforms_BL)) for b in batches] == [
        ([0, 1, 2], 3, 3, 3),
        ([3, 4, 5], 3, 3, 3),
        ([6, 6, 6], 1, 3, 3),
    ]
    assert batches[2].labels_B.tolist() == [16 % NUM_CLASSES] * 3
    assert torch.equal(batches[1].uniforms_BL, uniforms(3, np.array([13, 14, 15]), 30))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_shard_comes_out_whole_with_its_columns(models, count):
    shard = ShardRows.of(rows(5, count), extra={"note": [f"n{i}" for i in range(count)]})
    prefixes = Drafter(models, settings()).load()(shard)
    assert prefixes.prefix.shape == (count, 5)
    assert prefixes.draft_steps == 2
    pixels = Refiner(models, settings(), keep_tokens=True).load()(prefixes)
    assert pixels.pixels.shape == (count, 16, 16, 3)
    assert pixels.pixels.dtype == np.uint8
    assert pixels.tokens.shape == (count, sum(n * n for n in PATCH_NUMS))
    np.testing.assert_array_equal(pixels.tokens[:, :5], prefixes.prefix)
    assert pixels.index.tolist() == list(range(5, 5 + count))
    assert pixels.extra["note"].to_pylist() == [f"n{i}" for i in range(count)]
    assert set(pixels.seconds) == {"draft", "refine", "decode"}
    assert Refiner(models, settings()).load()(prefixes).tokens is None


def test_the_same_shard_gives_the_same_bytes_from_any_replica(models):
    """Two replicas, one of which has worked on another shard before."""
    first, second = Drafter(models, settings()).load(), Drafter(models, settings()).load()
    second(rows(100, 5))
    expected, found = first(rows(0, 7)), second(rows(0, 7))
    np.testing.assert_array_equal(expected.prefix, found.prefix)
    one, other = Refiner(models, settings()).load(), Refiner(models, settings()).load()
    other(second(rows(100, 5)))
    np.testing.assert_array_equal(one(expected).pixels, other(found).pixels)


def test_a_stage_travels_to_its_actors_without_weights(models):
    for stage in (Drafter(models, settings()), Refiner(models, settings())):
        assert len(pickle.dumps(stage)) < 10_000


def test_pixels_that_are_no_numbers_are_an_error(models, monkeypatch):
    monkeypatch.setattr(
        "tandem_workers.stages.refiner.decode", lambda vqvae, ids, source: torch.full((len(ids), 3, 16, 16), torch.nan)
    )
    prefixes = Drafter(models, settings()).load()(rows(0, 2))
    with pytest.raises(JobError, match="made pixels that are not finite"):
        Refiner(models, settings()).load()(prefixes)


def test_threads_are_set_explicitly(models):
    Drafter(models, settings(threads=2)).load()
    assert torch.get_num_threads() == 2
    Refiner(models, settings(threads=1)).load()
    assert torch.get_num_threads() == 1


def test_bfloat16_runs_and_stays_near_float32(models):
    """Same prefixes, so that only rounding differs: the first new scale mostly draws the same tokens."""
    prefixes = Drafter(models, settings()).load()(rows(0, 30))
    greedy = settings(sampling=SamplingConfig(cfg=0.0, top_k=1))
    exact = Refiner(models, greedy, keep_tokens=True).load()(prefixes)
    rounded = Refiner(models, settings(sampling=greedy.sampling, dtype="bfloat16"), keep_tokens=True).load()(prefixes)
    named = Refiner(models, settings(dtype="bfloat16")).load().refiner.named_parameters()
    assert {p.dtype for name, p in named if not name.startswith("head.")} == {torch.bfloat16}  # head: see dtype_of
    next_scale = slice(5, 14)
    assert (exact.tokens[:, next_scale] == rounded.tokens[:, next_scale]).mean() > 0.9


def test_pixels_are_rounded_to_nearest():
    pixels = torch.tensor([0.0, 0.5 / 255 + 1e-4, 1.4 / 255, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_uint8(pixels)[0, :, :, 0].tolist() == [[0, 1], [1, 255]]


@pytest.mark.parametrize("preparation", [Preparation(fold_adaln=True), Preparation(int8=True)])
def test_both_stages_prepare_their_models_as_the_settings_say(models, preparation):
    drafter = Drafter(models, settings(preparation=preparation)).load()
    refiner = Refiner(models, settings(preparation=preparation), keep_tokens=True).load()
    for var in (drafter.drafter, refiner.refiner):
        assert (var.table is not None) == preparation.fold_adaln
        assert (var.blocks[0].ffn.fc1.int8_scale_O is not None) == preparation.int8
    pixels = refiner(drafter(rows(0, 4)))
    assert pixels.pixels.shape == (4, 16, 16, 3)
    plain = Refiner(models, settings(), keep_tokens=True).load()(Drafter(models, settings()).load()(rows(0, 4)))
    assert (pixels.tokens == plain.tokens).mean() > (0.9 if preparation.fold_adaln else 0.3)


def test_only_what_is_asked_for_of_the_preparation_is_part_of_the_identity():
    plain = decoding_identity(settings())
    assert set(plain) == {"seed", "draft_steps", "sampling", "batch", "dtype", "threads"}
    assert decoding_identity(settings(preparation=Preparation(int8=True))) == plain | {"how": {"int8": True}}
    assert decoding_identity(settings(preparation=Preparation(kernels="auto"))) == plain | {"how": {"kernels": "auto"}}


@pytest.mark.parametrize(("asked", "on_real_gpus", "chosen"), [("auto", True, "auto"), ("auto", False, "plain")])
def test_fused_kernels_are_for_real_gpus(asked, on_real_gpus, chosen):
    spec = RefineSpec(drafts="drafts", out="out", kernels=asked)
    found = choose_settings(spec, 0, 2, SamplingConfig(), 4, on_real_gpus)
    assert (found.preparation.kernels, found.on_gpu) == (chosen, on_real_gpus)


def test_the_preparation_is_what_the_options_of_its_names_say():
    asked = {"fold_adaln": True, "int8": True, "cuda_graphs": True}
    assert Preparation.of(RefineSpec(drafts="drafts", out="out", **asked), True) == Preparation(**asked, kernels="auto")
    plain = RefineSpec(drafts="drafts", out="out", kernels="plain", cuda_graphs=False)
    assert Preparation.of(plain, True) == Preparation()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("generate", ("--classes", "all", "--images", "4")),
        ("draft", ("--classes", "all", "--images", "4")),
        ("refine", ("--drafts", "none")),
        ("serve", ("--port", "0")),
    ],
)
def test_int8_is_refused_before_anything_starts_where_this_machine_has_gpus(command, options, tmp_path, monkeypatch):
    monkeypatch.setattr("tandem_jobs.run.decode_choices.count_real_gpus", lambda: 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    place = () if command == "serve" else ("--out", str(tmp_path / "out"))
    module = import_module(f"tandem_jobs.{command}")
    spec = parse(getattr(module, f"{command.title()}Spec"), [*options, *place, "--int8"], f"tandem {command}")
    with pytest.raises(InputError, match=r"^--int8: expected a CPU, got a GPU, where bfloat16 is 2\.4 times as fast$"):
        module.run(spec)
    assert not (tmp_path / "out").exists()
    check_gpus_here(spec, None, on_cpus=True)
    check_gpus_here(spec, "auto", on_cpus=False)  # its GPUs are known when the cluster answers
    with pytest.raises(InputError, match=r"^--int8: "):
        choose_settings(spec, 0, 2, SamplingConfig(), 4, on_real_gpus=True)


@pytest.mark.parametrize(
    ("asked", "on_gpu", "graphs"), [(None, True, True), (None, False, False), (False, True, False)]
)
def test_graphs_are_the_default_on_gpus_and_no_part_of_the_job(asked, on_gpu, graphs):
    spec = RefineSpec(drafts="drafts", out="out", cuda_graphs=asked)
    found = choose_settings(spec, 0, 2, SamplingConfig(), 4, on_gpu)
    assert found.preparation.cuda_graphs is graphs
    assert "cuda_graphs" not in str(decoding_identity(found))


def test_folding_what_is_shared_is_refused_before_anything_starts(models):
    spec = RefineSpec(drafts="drafts", out="out", fold_adaln=True)
    check_preparation(spec, {"refiner": models.refiner_config})
    with pytest.raises(InputError, match=r"--fold-adaln: .* got a refiner that shares them"):
        check_preparation(spec, {"refiner": replace(models.refiner_config, shared_adaln=True)})


def test_mixed_pools_make_the_same_pixels_by_either_way(models, monkeypatch):
    """One shard by a drafter and a refiner, one by a finisher whose work the refiner passes through."""
    monkeypatch.setattr(ray_data, "replica_name", lambda: "here/gpu0")
    placement = Placement("mixed", 1, 1, "as asked", num_both=2)
    draft, refine = Drafter(models, settings()), Refiner(models, settings(), keep_tokens=True)
    first, second = generate_pools(placement, [Rows(ShardPlan(4, 4)), draft], refine)
    assert (first.replicas, first.finishers, second.replicas) == (3, 2, 1)

    def actor(pool):
        return StageActor(pool.takes, pool.stages, pool.further, pool.passes)

    row, refiner = {"item": np.array([0])}, actor(second)
    apart = refiner(actor(first)(row))
    monkeypatch.setenv(FINISHER, "1")
    finished = actor(first)(row)
    assert refiner(finished) is finished
    for name in ("pixels", "tokens", "index", "label"):
        np.testing.assert_array_equal(finished[name], apart[name])
