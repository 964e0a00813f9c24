"""Card, contact sheet and the table of an image folder, made from committed shards."""

import io
from functools import partial

import numpy as np
import pytest
import yaml
from PIL import Image

from support.sample_shards import (
    CLASS_NAMES,
    LABELS,
    PLAN,
    SIZE,
    encoded_shard,
    pixel_shard,
    sample_dataset,
    sample_format,
)
from tandem.errors import JobError
from tandem_workers.dataset.card import CardInfo, closing_files, render_card
from tandem_workers.dataset.closing import close_dataset
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.contact_sheet import pick_labels, render_contact_sheet
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.dataset.success_file import Totals
from tandem_workers.storage.places import open_store

INFO = CardInfo(
    sample_format("webdataset"),
    SIZE,
    {"drafter": ("file|one.safetensors", "d" * 64), "refiner": ("embedded", "e" * 64)},
    {"cfg": 1.5, "top_k": 600},
    "tandem generate --classes all",
    "tandem 0.0",
    title='Trams: "all" of them',
)


def close(store):
    close_dataset(Manifest(store), 3, render=partial(closing_files, store, INFO, 0))


def front_matter(card: str) -> dict:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


@pytest.mark.parametrize(
    ("rows", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (50_000, "10K<n<100K"), (2_000_000, "1M<n<10M")]
)
def test_front_matter_is_what_the_hub_asks_for(rows, category):
    matter = front_matter(render_card(INFO, Totals(4, rows, 1, {0: rows}, {})))
    assert matter["size_categories"] == [category] and matter["pretty_name"] == INFO.title
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": "shards/*.tar"}]
    assert "synthetic" in matter["tags"] and matter["license"] == "other"


def test_the_card_says_what_made_the_dataset():
    card = render_card(INFO, Totals(4, 30, 1, {1: 10, 2: 20}, {}))
    for text in (
        "d" * 64,
        "e" * 64,
        "| cfg | 1.5 |",
        "| Seed | 7 |",
        "| Draft steps (N) | 3 |",
        INFO.command,
    ):
        assert text in card
    assert "| 1 | crane | 10 |\n| 2 | a\\|b/../c | 20 |" in card
    assert "file\\|one.safetensors" in card
    assert "trainedAlgorithmicMedia" in card and "shards/{00000..00003}.tar" in card
    assert "$" not in card and "{ext}" not in card


@pytest.mark.parametrize("name", ["webdataset", "parquet", "folder"])
def test_the_python_of_the_card_runs(tmp_path, monkeypatch, name):
    sample_dataset(tmp_path, name)
    card = (tmp_path / "README.md").read_text()
    python = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    seen = {}
    exec(python.split("\n\nfrom torchvision")[0], seen)  # torchvision is not among the test dependencies
    if name == "webdataset":
        assert (seen["image"].size, seen["label"], seen["row"]["index"]) == ((SIZE, SIZE), 1, 9)
    else:
        assert len(seen["dataset"]) == 10


@pytest.mark.parametrize("name", ["webdataset", "parquet", "folder"])
def test_the_contact_sheet_shows_the_committed_pixels_of_every_class(tmp_path, name):
    store = sample_dataset(tmp_path, name)
    sheet = np.asarray(Image.open(io.BytesIO(store.read("contact_sheet.png"))))
    pixels = np.concatenate([pixel_shard(shard, PLAN).pixels for shard in range(3)])
    side = 96  # 12 px, enlarged eight times
    for cell, index in enumerate((0, 4, 1, 5, 2, 6, 3, 7)):  # two of each of the four classes
        x, y = 6 + cell * (side + 6), 6
        tile = Image.fromarray(pixels[index]).resize((side, side), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(sheet[y : y + side, x : x + side], np.asarray(tile))
    assert sheet.shape[1] == 6 + 8 * (side + 6)


def test_a_class_with_fewer_images_leaves_cells_empty(tmp_path):
    store, fmt, plan = open_store(str(tmp_path)), sample_format(), ShardPlan(5, 5)
    shard = encoded_shard(0, plan)  # labels 0 1 3 5 0
    store_shard(store, Manifest(store), shard, fmt, plan)
    sheet = Image.open(io.BytesIO(render_contact_sheet(store, Manifest(store).entries(), fmt)))
    second_of_label_1 = sheet.crop((6 + 3 * 102, 6, 6 + 3 * 102 + 96, 102))
    assert np.asarray(second_of_label_1).min() == 255


def test_labels_are_picked_evenly():
    assert pick_labels([3, 5]) == [3, 5]
    picked = pick_labels(range(1000))
    assert len(picked) == 64 and picked[0] == 0 and picked[-1] == 984
    assert set(np.diff(picked)) <= {15, 16}


def test_a_card_needs_all_shards_and_is_written_once(tmp_path):
    store, fmt = open_store(str(tmp_path)), sample_format()
    store_shard(store, Manifest(store), encoded_shard(0, PLAN), fmt, PLAN)
    with pytest.raises(JobError, match="2 of 3 shards are missing"):
        close(store)
    for shard in (1, 2):
        store_shard(store, Manifest(store), encoded_shard(shard, PLAN), fmt, PLAN)
    close(store)
    first = {path: store.read(path) for path in ("README.md", "contact_sheet.png")}
    close(store)
    assert {path: store.read(path) for path in first} == first
    assert all(f"| {label} | {CLASS_NAMES[label]} |" in first["README.md"].decode() for label in LABELS)
