"""Batches of rows from many requests: each row comes out as if it had been alone, and as a job makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from support.tiny_models import CLASS_NAMES, PATCH_NUMS, tiny_var
from tandem.assembly import Preparation
from tandem.checkpoints.weights import save_checkpoint
from tandem.collaborative import decode, generate, generate_alone
from tandem.config import SamplingConfig
from tandem.errors import JobError, TandemWarning
from tandem.graphs import Graphs, Replay, Tensors
from tandem.prefix import to_tokens
from tandem.sampling import uniforms
from tandem.scales import decode_scales
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.endpoint.decoding import DraftDecoder, Pixels, PreviewPixels, RefineDecoder, Row, Tokens
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import ModelSet, resolve_models
from tandem_workers.requests.messages import ImageRequest
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.refiner import Refiner, to_uint8

K = len(PATCH_NUMS)
NUM_TOKENS = sum(n * n for n in PATCH_NUMS)
OFFSETS = [0, *np.cumsum([n * n for n in PATCH_NUMS])]
NOTHING = np.zeros(0, np.uint16)
GUIDED = SamplingConfig(cfg=2.0, top_k=20, top_p=0.95)
FREE = SamplingConfig(cfg=0.0, top_k=0, top_p=0.0, temperatures=(1.0,))
GREEDY = SamplingConfig(cfg=4.0, top_k=1)


@pytest.fixture(scope="module")
def models(tiny_models) -> ModelSet:
    return resolve_models(tiny_models["drafter"], tiny_models["refiner"], tiny_models["vqvae"], False)


@pytest.fixture(scope="module")
def works(models) -> Iterator[tuple[DraftDecoder, RefineDecoder]]:
    before = torch.get_num_threads()
    yield DraftDecoder(models, "float32", 1), RefineDecoder(models, "float32", 1)
    torch.set_num_threads(before)


def ask(label: int, seed: int, n: int = 1, sampling: SamplingConfig = GUIDED, steps: int = 2, looks=()) -> ImageRequest:
    return ImageRequest(label, seed, n, steps, sampling, preview_scales=frozenset(looks))


def rows_of(*requests: ImageRequest) -> list[Row]:
    return [Row(request, index, NOTHING) for request in requests for index in range(request.n)]


def sort_out(made, count: int) -> tuple[list, list[list[PreviewPixels]]]:
    """Of each row its one result, and its looks in order."""
    results: list = [None] * count
    looks: list[list[PreviewPixels]] = [[] for _ in range(count)]
    for place, value in made:
        if isinstance(value, PreviewPixels):
            looks[place].append(value)
        else:
            assert results[place] is None, "a row came twice"
            results[place] = value
    return results, looks


def make(
    works, rows: Sequence[Row], size: int
) -> tuple[list[Tokens | None], list[Pixels], list[list[PreviewPixels]], list[list[PreviewPixels]]]:
    """Draft where there is something to draft, then refine: (tokens, pixels, looks of each stage)."""
    drafted, first = sort_out([], len(rows))
    if rows[0].request.draft_steps:
        drafted, first = sort_out(works[0](rows, size), len(rows))
        rows = [Row(row.request, row.index, made.ids) for row, made in zip(rows, drafted, strict=True)]
    pixels, second = sort_out(works[1](rows, size), len(rows))
    return drafted, pixels, first, second


def by_hand(works, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 and ids uint16 of one image, by the library."""
    drafter, refiner, vqvae = works[0].var, works[1].var, works[0].vqvae
    request, labels = row.request, torch.tensor([row.request.label])
    noise = uniforms(request.seed, np.array([row.index]), NUM_TOKENS)
    if request.draft_steps in (0, K):
        alone = drafter if request.draft_steps else refiner
        pixels, ids = generate_alone(alone, vqvae, labels, noise, request.sampling)
    else:
        pixels, ids = generate(drafter, refiner, vqvae, labels, noise, request.draft_steps, request.sampling)
    return to_uint8(pixels)[0], to_tokens(ids)[0]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Pixels that differ by rounding alone."""
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("steps", range(K + 1))
def test_rows_of_any_seed_class_and_sampling_come_out_as_each_alone(works, steps):
    """0 steps: the refiner alone; K: the drafter alone; between: CoDe. Image i of a seed is the library's."""
    asked = [ask(0, 5, 2, GUIDED, steps), ask(3, 5, 1, FREE, steps), ask(1, 2**53 - 1, 1, GREEDY, steps)]
    asked += [ask(0, 6, 1, GUIDED, steps), ask(2, 7, 1, SamplingConfig(cfg=1.0), steps)]
    rows = rows_of(*asked)
    tokens, pixels, *_ = make(works, rows, 8)
    for row, drafted, made in zip(rows, tokens, pixels, strict=True):
        expected, ids = by_hand(works, row)
        assert_close(made.pixels, expected)
        if steps:
            assert drafted.ids.dtype == np.uint16
            np.testing.assert_array_equal(drafted.ids, ids[: OFFSETS[steps]])
    assert len({made.pixels.tobytes() for made in pixels}) == len(rows)


def test_the_refiner_draws_the_ids_of_each_row_as_if_alone(works, monkeypatch):
    """Pixels could hide a wrong id; these are the ids that go into the decoder."""
    rows = rows_of(ask(0, 5, 2), ask(3, 5, 1, FREE), ask(1, 9, 1, GREEDY))
    expected = [by_hand(works, row)[1] for row in rows]
    decoded = []
    monkeypatch.setattr(
        "tandem_workers.endpoint.decoding.decode",
        lambda vqvae, ids, source: decoded.append(ids) or decode(vqvae, ids, source),
    )
    sort_out(works[1]([Row(row.request, row.index, ids[:5]) for row, ids in zip(rows, expected, strict=True)], 4), 4)
    np.testing.assert_array_equal(to_tokens(decoded[-1]), np.stack(expected))


def test_the_images_of_a_request_are_the_bytes_of_a_job_with_its_seed(works, models):
    """At the job's batch size: five images, padded with the last as a job pads its last batch."""
    settings = DecodeSettings(11, 2, GUIDED, batch=8, dtype="float32", threads=1)
    shard = ShardRows(shard=0, index=np.arange(5), label=np.full(5, 3, np.int32))
    prefixes = Drafter(models, settings).load()(shard)
    tokens, pixels, *_ = make(works, rows_of(ask(3, 11, 5)), 8)
    np.testing.assert_array_equal(np.stack([made.ids for made in tokens]), prefixes.prefix)
    np.testing.assert_array_equal(
        np.stack([made.pixels for made in pixels]), Refiner(models, settings).load()(prefixes).pixels
    )


@pytest.mark.parametrize("steps", [0, 1, 2, K])
def test_looks_come_at_the_scales_asked_for_and_only_to_rows_that_ask(works, steps):
    everything = range(1, K)
    asked = [ask(0, 1, steps=steps), ask(1, 2, steps=steps, looks=everything), ask(2, 3, steps=steps, looks=[2])]
    rows = rows_of(*asked)
    _, pixels, first, second = make(works, rows, 4)
    scales = [[look.scale for look in looks] for looks in first]
    assert scales == [[], [s for s in everything if s <= steps], [2] if steps >= 2 else []]
    assert [[look.scale for look in looks] for looks in second] == [
        [],
        [s for s in everything if s > steps],
        [2] if steps < 2 else [],
    ]
    for place in (1, 2):
        _, ids = by_hand(works, rows[place])
        looks = first[place] + second[place]
        for look in looks:
            known = torch.from_numpy(ids[None, : OFFSETS[look.scale]].astype(np.int64))
            assert_close(look.pixels, to_uint8(decode(works[0].vqvae, known))[0])
        assert len({look.pixels.tobytes() for look in looks} | {pixels[place].pixels.tobytes()}) == len(looks) + 1


def test_looking_changes_no_image(works):
    plain = make(works, rows_of(ask(1, 4, 3)), 4)[1]
    looked = make(works, rows_of(ask(1, 4, 3, looks=range(1, K))), 4)[1]
    for one, other in zip(plain, looked, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("size", [3, 4, 8])
def test_padding_changes_nothing_and_is_not_given_out(works, size):
    rows = rows_of(ask(0, 5, 2), ask(3, 5, 1, FREE, looks=[1, 3]))
    exact, padded = make(works, rows, 3), make(works, rows, size)
    for one, other in zip(exact[0], padded[0], strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    for one, other in zip(exact[1], padded[1], strict=True):
        assert_close(one.pixels, other.pixels)
    assert [len(looks) for looks in (*padded[2], *padded[3])] == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_memory_that_runs_out_halves_the_batch_and_nothing_comes_twice(models, works, num_rows, monkeypatch):
    rows = rows_of(ask(0, 5, num_rows, looks=[1, 2, 3], steps=3))
    expected = make(works, rows, 8)

    def limited(*arguments):
        for number, ids in enumerate(decode_scales(*arguments)):
            if len(ids) > 2 and number > 0:  # one scale has been looked at
                raise torch.OutOfMemoryError("made up")
            yield ids

    monkeypatch.setattr("tandem_workers.endpoint.decoding.decode_scales", limited)
    smaller = DraftDecoder(models, "float32", 1), RefineDecoder(models, "float32", 1)
    with pytest.warns(TandemWarning, match="out of memory with . images at once") as warned:
        found = make(smaller, rows, 8)
    sizes = [str(warning.message).partition(";")[0] for warning in warned]
    assert sizes == [f"drafter: out of memory with {n} images at once, now {n // 2}" for n in (8, 4)]
    for one, other in zip(expected[0], found[0], strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    for one, other in zip(expected[1], found[1], strict=True):
        assert_close(one.pixels, other.pixels)
    assert [[look.scale for look in looks] for looks in found[2]] == [[1, 2, 3]] * num_rows


def test_each_result_says_how_long_its_batch_took(works):
    tokens, pixels, *_ = make(works, rows_of(ask(0, 5, 2)), 2)
    assert [set(made.seconds) for made in (*tokens, *pixels)] == [{"draft"}] * 2 + [{"refine", "decode"}] * 2
    assert all(value > 0 for made in (*tokens, *pixels) for value in made.seconds.values())


def test_logits_that_are_no_numbers_are_an_error_and_no_image(tiny_models, tmp_path):
    drafter = tiny_var(3, seed=1)
    drafter.class_emb.weight[0] = torch.nan
    save_checkpoint(tmp_path / "poisoned.safetensors", drafter, {"classes": list(CLASS_NAMES)}, torch.float32)
    models = resolve_models(str(tmp_path / "poisoned.safetensors"), tiny_models["refiner"], tiny_models["vqvae"], False)
    work = DraftDecoder(models, "float32", 1)
    with pytest.raises(JobError, match="not finite"):
        list(work(rows_of(ask(0, 1)), 1))
    assert [value.ids.shape for _, value in work(rows_of(ask(1, 1)), 1)] == [(OFFSETS[2],)]


def test_pixels_that_are_no_numbers_are_an_error_and_no_image(works, monkeypatch):
    monkeypatch.setattr(
        "tandem_workers.endpoint.decoding.decode",
        lambda vqvae, ids, source: torch.full((len(ids), 3, 16, 16), torch.nan),
    )
    with pytest.raises(JobError, match="pixels that are not finite"):
        list(works[1](rows_of(ask(0, 1, steps=0)), 1))


def test_the_endpoint_prepares_its_models_as_asked(models, works):
    for work in (kind(models, "float32", 1, Preparation(fold_adaln=True)) for kind in (DraftDecoder, RefineDecoder)):
        assert work.var.table is not None
    assert works[0].var.table is works[1].var.table is None


def test_previews_capture_no_graphs(works, monkeypatch):
    """Their shapes, scales times rows, would push those of whole batches out."""
    captured = []

    def capture(work: Callable[[], Tensors]) -> Replay:
        captured.append(work()[0].shape)
        return work

    monkeypatch.setattr("tandem.graphs.FIRST_CAPTURED", 1)
    rows = rows_of(ask(1, 5, 2, looks=range(1, K + 1)))
    *_, expected = make(works, rows, 2)
    for work in works:
        monkeypatch.setattr(work.vqvae, "graphs", Graphs(capture))
    *_, looks = make(works, rows, 2)
    assert captured == [(2, 3, *looks[0][0].pixels.shape[:2])]
    for found, plain in zip(looks, expected, strict=True):
        assert [one.scale for one in found] == [one.scale for one in plain]
        assert all((one.pixels == other.pixels).all() for one, other in zip(found, plain, strict=True))
