"""Rows with settings of their own through the stages: each image is that of a job with these settings as flags."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from support.tiny_models import CLASS_NAMES, NUM_CLASSES, PATCH_NUMS
from tandem.config import Pyramid, SamplingConfig, to_dict
from tandem.errors import InputError
from tandem.images import Provenance, read_provenance
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.labels.settings_columns import fill_settings
from tandem_jobs.refine import ReadDrafts, RefineSpec, drafted_sampling, overridden
from tandem_jobs.run.decode_choices import describe_models
from tandem_workers.dataset.card import CardInfo, render_card
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.drafts import DraftFormat, Drafts
from tandem_workers.dataset.formats import DatasetFormat
from tandem_workers.dataset.identity import Identity, decoding_identity
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import PixelShard, ShardPlan, ShardRows
from tandem_workers.dataset.success_file import Totals
from tandem_workers.endpoint.decoding import DraftDecoder, RefineDecoder, Row
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import ModelSet, Resolved, resolve_models
from tandem_workers.requests.messages import ImageRequest
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.encoder import ImageEncoder
from tandem_workers.stages.ray_data import empty_shard
from tandem_workers.stages.refiner import Refiner
from tandem_workers.stages.shard_batches import fixed_batches
from tandem_workers.storage.places import open_store

OWN = SamplingConfig(cfg=2.0, top_k=20, top_p=0.95, temperatures=(1.0,))
BATCH, SEED = 3, 3
PYRAMID = Pyramid(PATCH_NUMS)
FAULTY = Path(__file__).parents[3] / "data/labels/label_columns_like_settings.csv"
COLUMNS = {
    "cfg": [3.0, 0.5, 2.0, 0.0, 3.0, 1.0, 2.0],
    "cfg_schedule": ["linear", "constant", "off-after:2", "linear", "0,1,0,2", "linear", "linear"],
    "refiner_cfg": [3.0, 0.0, 2.0, 1.5, 1.0, 0.0, 2.0],
    "top_k": [5, 7, 20, 0, 1, 20, 20],
    "temperatures": [[1.0], [2.0, 1.0], [1.0], [1.0], [1.0], [0.5], [1.0]],
    "draft_steps": [2, 1, 3, 1, 2, 3, 2],
    "seed": [SEED, 5, 5, SEED, 8, 5, SEED],
    "seed_index": [0, 0, 1, 3, 0, 0, 6],
}
NAMES = tuple(name for name in COLUMNS if name != "seed_index")


def sampling_of_row(row: int) -> SamplingConfig:
    own = {name: COLUMNS[name][row] for name in ("cfg", "cfg_schedule", "refiner_cfg", "top_k")}
    return SamplingConfig(**own, top_p=OWN.top_p, temperatures=tuple(COLUMNS["temperatures"][row]))


def settings(row_settings: tuple[str, ...] = (), **changes) -> DecodeSettings:
    values = {"seed": SEED, "draft_steps": 2, "sampling": OWN, "batch": BATCH, "dtype": "float32", "threads": 1}
    return DecodeSettings(**values | changes, row_settings=row_settings)


def rows(*names: str) -> ShardRows:
    index = np.arange(7, dtype=np.int64)
    extra = {name: pa.array(COLUMNS[name]) for name in (*names, *(["seed_index"] if "seed" in names else []))}
    return ShardRows(shard=0, index=index, label=(index % NUM_CLASSES).astype(np.int32), extra=extra)


@pytest.fixture(scope="module")
def models(tiny_models) -> Iterator[ModelSet]:
    before = torch.get_num_threads()
    yield resolve_models(tiny_models["drafter"], tiny_models["refiner"], tiny_models["vqvae"], False)
    torch.set_num_threads(before)


def run(models: ModelSet, shard: ShardRows, decoding: DecodeSettings) -> PixelShard:
    return Refiner(models, decoding, keep_tokens=True).load()(Drafter(models, decoding).load()(shard))


@pytest.fixture(scope="module")
def made(models) -> PixelShard:
    """All settings at once."""
    return run(models, rows(*NAMES), settings(NAMES))


def test_batches_are_of_one_n_each_and_rows_keep_their_order_in_them(models):
    decoding, device = settings(("draft_steps",)), torch.device("cpu")
    batches = fixed_batches(rows("draft_steps"), decoding, models.drafter_config, device)
    cuts = [(b.draft_steps, b.rows_B.tolist(), b.num_rows) for b in batches]
    assert cuts == [(1, [1, 3, 3], 2), (2, [0, 4, 6], 3), (3, [2, 5, 5], 2)]


def test_rows_whose_settings_are_the_jobs_have_the_bytes_of_a_job_without_columns(models):
    shard = rows()
    columns = {"cfg": pa.array([2.0] * 7), "top_k": pa.array([20] * 7), "draft_steps": pa.array([2] * 7)}
    plain = run(models, shard, settings())
    same = run(models, ShardRows.of(shard, extra=columns), settings(tuple(columns)))
    np.testing.assert_array_equal(plain.pixels, same.pixels)


def test_an_image_has_the_tokens_of_a_job_with_its_settings_as_flags(models, made):
    """The row alone in a batch of another job, which takes its settings from flags."""
    for row in range(7):
        own = {name: COLUMNS[name][row] for name in COLUMNS}
        decoding = settings(seed=own["seed"], draft_steps=own["draft_steps"], sampling=sampling_of_row(row))
        alone = ShardRows(
            shard=0, index=np.array([own["seed_index"]]), label=np.array([row % NUM_CLASSES], dtype=np.int32)
        )
        job = run(models, alone, decoding)
        np.testing.assert_array_equal(made.tokens[row], job.tokens[0], err_msg=f"row {row}")
        assert np.abs(made.pixels[row].astype(int) - job.pixels[0].astype(int)).max() <= 1


def test_an_image_with_a_seed_is_that_of_the_endpoint(models, made):
    row = 2  # the second image of seed 5
    own = {name: COLUMNS[name][row] for name in COLUMNS}
    request = ImageRequest(
        row % NUM_CLASSES, own["seed"], 2, own["draft_steps"], sampling_of_row(row), deterministic=True
    )
    asked = [Row(request, index, np.zeros(0, np.uint16)) for index in range(2)]
    drafted = dict(DraftDecoder(models, "float32", 1)(asked, BATCH))
    handed = [Row(request, index, drafted[index].ids) for index in range(2)]
    pixels = dict(RefineDecoder(models, "float32", 1)(handed, BATCH))[own["seed_index"]].pixels
    assert np.abs(made.pixels[row].astype(int) - pixels.astype(int)).max() <= 1


def encode(made: PixelShard, name: str) -> tuple[list[bytes], list[tuple[str, bytes]]]:
    provenance = Provenance("tandem 0.0", "d" * 64, "r" * 64, "v" * 64, SEED, 2)
    encoded = ImageEncoder("png", 90, provenance, CLASS_NAMES, NAMES)(made)
    return list(encoded.images), DatasetFormat(name, "png", CLASS_NAMES, SEED, 2).files(encoded)


def test_every_image_says_how_it_was_made(made):
    images, _ = encode(made, "parquet")
    told = read_provenance(images[1])
    assert (told.seed, told.draft_steps, told.index) == (5, 1, 1)
    guidance = {"cfg": 0.5, "cfg_schedule": "constant", "refiner_cfg": 0.0}
    assert told.settings == {**guidance, "top_k": 7, "temperatures": [2.0, 1.0], "seed_index": 0}


def test_provenance_of_jobs_without_such_columns_is_what_it_was():
    provenance = Provenance("tandem 0.0", "d", "r", "v", SEED, 2).for_image(1, 0, "ant")
    assert list(json.loads(provenance.to_json()))[-3:] == ["index", "label", "class_name"]


@pytest.mark.parametrize("name", ["parquet", "webdataset", "folder"])
def test_the_columns_of_every_format_say_so_too(made, name):
    _, files = encode(made, name)
    data = files[-1][1]
    if name == "webdataset":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            table = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    else:
        table = pq.read_table(io.BytesIO(data)).to_pylist()
    for column, expected in COLUMNS.items():
        assert [row[column] for row in table] == expected, column
    assert [row["index"] for row in table] == list(range(7))


def test_the_card_says_which_settings_are_of_each_row():
    fmt = DatasetFormat("parquet", "png", CLASS_NAMES, SEED, 2)
    info = CardInfo(
        fmt, 16, {}, to_dict(OWN), "tandem generate", "tandem 0.0", row_settings=("cfg", "draft_steps", "seed")
    )
    card = render_card(info, Totals(1, 7, 1000, {0: 7}, {}, {}))
    for line in (
        "| cfg | of each row: column `cfg` |",
        "| top_k | 20 |",
        "| Draft steps (N) | of each row: column `draft_steps` |",
        "| Seed | of each row: column `seed`, and `seed_index` in place of the index |",
        "a drafter made the N coarsest",
    ):
        assert line in card, line


def test_the_identity_has_the_columns_and_a_plain_job_has_none(models):
    assert decoding_identity(settings(NAMES))["row_settings"] == list(NAMES)
    assert "row_settings" not in decoding_identity(settings())
    lines = describe_models(models, settings(("cfg",)), (models.drafter_config, None))
    assert lines[-1].endswith("seed 3; each row has its own cfg")


@pytest.fixture
def drafts(models, tmp_path) -> Drafts:
    names = ("cfg", "refiner_cfg", "top_k", "seed")
    store, plan, decoding = open_store(str(tmp_path / "drafts")), ShardPlan(7, 7), settings(names)
    store_shard(store, Manifest(store), Drafter(models, decoding).load()(rows(*names)), DraftFormat(), plan)
    identity = Identity({"decoding": decoding_identity(decoding)})
    return Drafts(store, plan, identity, Resolved(models.drafter, models.drafter_config))


def test_drafts_are_refined_with_the_settings_of_their_rows(models, drafts):
    columns = drafts.extra_schema().names
    assert drafts.row_settings == ("cfg", "refiner_cfg", "top_k", "seed")
    assert columns == ["cfg", "refiner_cfg", "top_k", "seed", "seed_index"]
    assert overridden(RefineSpec(drafts="d", out="out"), drafts, columns) == {}
    decoding = settings(drafts.row_settings)
    refined = Refiner(models, decoding, keep_tokens=True).load()(ReadDrafts(drafts, 2, {})(empty_shard(0)))
    whole = run(models, rows("cfg", "refiner_cfg", "top_k", "seed"), decoding)
    np.testing.assert_array_equal(refined.pixels, whole.pixels)


def test_a_flag_of_refine_replaces_the_column_whose_values_are_kept_as_those_of_the_draft(models, drafts):
    columns = drafts.extra_schema().names
    renamed = overridden(RefineSpec(drafts="d", out="out", cfg=1.0), drafts, columns)
    assert renamed == {"cfg": "drafted_cfg", "refiner_cfg": "drafted_refiner_cfg"}  # one flag for what refiners do
    assert overridden(RefineSpec(drafts="d", out="out", refiner_cfg=1.0), drafts, columns).keys() == {"refiner_cfg"}
    shard = ReadDrafts(drafts, 2, renamed)(empty_shard(0))
    assert list(shard.extra) == ["drafted_cfg", "drafted_refiner_cfg", "top_k", "seed", "seed_index"]
    assert shard.extra["drafted_cfg"].to_pylist() == COLUMNS["cfg"]
    refined = Refiner(models, settings(("top_k", "seed"), sampling=SamplingConfig(1.0, 20, 0.95, (1.0,)))).load()(shard)
    assert refined.pixels.shape == (7, *([4 * PATCH_NUMS[-1]] * 2), 3)
    with pytest.raises(InputError, match="--cfg: expected no column drafted_cfg"):
        overridden(RefineSpec(drafts="d", out="out", cfg=1.0), drafts, [*columns, "drafted_cfg"])
    with pytest.raises(InputError, match="column 'top_p': expected the setting that rows were drafted with"):
        overridden(RefineSpec(drafts="d", out="out"), drafts, [*columns, "top_p"])


def test_a_strength_for_rows_with_schedules_of_their_own_needs_one_for_all(drafts):
    named = replace(drafts, identity=Identity({"decoding": decoding_identity(settings(("cfg_schedule",)))}))
    for flag in ("cfg", "refiner_cfg"):
        with pytest.raises(InputError, match=f"--{flag.replace('_', '-')}: expected --cfg-schedule with it"):
            overridden(RefineSpec(drafts="d", out="out", **{flag: 1.0}), named, ["cfg_schedule"])
    both = RefineSpec(drafts="d", out="out", cfg=1.0, cfg_schedule="linear")
    assert overridden(both, named, ["cfg_schedule"]) == {"cfg_schedule": "drafted_cfg_schedule"}
    numbers = RefineSpec(drafts="d", out="out", cfg_schedule="0,1,2,3")
    assert set(overridden(numbers, drafts, drafts.extra_schema().names)) == {"cfg", "refiner_cfg"}


def test_a_refiner_is_guided_as_suits_the_pair_unless_a_strength_is_given():
    """Drafts know the drafter alone: what suits a pair of which one model is distilled is known with the refiner."""
    plain, spec = SamplingConfig(cfg=3.0), partial(RefineSpec, drafts="d", out="out")
    suits = replace(plain, refiner_cfg=0.0)
    assert drafted_sampling(spec(), plain, suits).refiner_cfg == 0.0
    assert drafted_sampling(spec(), replace(plain, refiner_cfg=1.0), suits).refiner_cfg == 1.0
    assert drafted_sampling(spec(cfg=2.0), plain, suits).refiner_cfg is None
    assert drafted_sampling(spec(), plain, plain) == plain


def test_the_embedded_model_makes_of_a_row_what_the_flags_make_of_its_index():
    """The label file of which all images were once made alike: face,2,3.0,5 and flag,1,0.5,7."""
    models = resolve_models("embedded", "embedded", "embedded", False)
    rows = fill_settings(read_label_file(str(FAULTY), models.class_names), models.sampling, 2, 0, PYRAMID, "")
    shard = rows.shard(ShardPlan(3, 3), 0)
    images = run(models, shard, settings(rows.row_settings, sampling=models.sampling))
    for own, here in (((3.0, 5), slice(0, 2)), ((0.5, 7), slice(2, 3))):
        flags = replace(models.sampling, cfg=own[0], top_k=own[1])
        job = run(models, ShardRows.of(shard, extra={}), settings(sampling=flags))
        np.testing.assert_array_equal(images.tokens[here], job.tokens[here])
        np.testing.assert_array_equal(images.pixels[here], job.pixels[here])
    assert not np.array_equal(images.tokens[2], run(models, shard, settings(sampling=models.sampling)).tokens[2])
