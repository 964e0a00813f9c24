"""Formats, read back by readers that nobody here wrote."""

import datetime
import decimal
import io
import json
import math
import tarfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.sample_shards import CLASS_NAMES, LABELS, PLAN, encoded_shard, pixel_shard, sample_dataset, sample_format
from tandem.errors import InputError, JobError
from tandem.images import read_provenance
from tandem_workers.dataset.formats import read_images, shard_files, unique_class_names
from tandem_workers.dataset.shards import EncodedShard, PixelShard, PrefixShard, ShardPlan, ShardRows
from tandem_workers.stages.encoder import ImageEncoder

FORMATS = ["webdataset", "parquet", "folder"]
EXPECTED_LABELS = [LABELS[i % len(LABELS)] for i in range(PLAN.num_rows)]


def expected_pixels(tokens=False) -> np.ndarray:
    return np.concatenate([pixel_shard(shard, PLAN, tokens).pixels for shard in range(PLAN.num_shards)])


@pytest.mark.parametrize("name", FORMATS)
def test_equal_rows_give_equal_bytes_at_any_time(name, monkeypatch):
    first = shard_files(encoded_shard(0, PLAN, tokens=True), sample_format(name))
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert shard_files(encoded_shard(0, PLAN, tokens=True), sample_format(name)) == first
    assert shard_files(encoded_shard(0, PLAN, tokens=True, noise=1), sample_format(name)) != first


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("webdataset", ["shards/00002.tar"]),
        ("parquet", ["shards/00002.parquet"]),
        ("folder", ["images/00000/000000008.jpg", "images/00001/000000009.jpg", "rows/00002.parquet"]),
    ],
)
def test_paths_of_a_shard(name, paths):
    shard = encoded_shard(2, PLAN, codec="jpeg")
    assert [path for path, _ in shard_files(shard, sample_format(name, "jpeg"))] == paths


def test_tar_members_are_plain_and_in_webdataset_order():
    ((_, data),) = shard_files(encoded_shard(1, PLAN, tokens=True), sample_format("webdataset"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:4]] == [f"000000004.{e}" for e in ("png", "cls", "json", "tokens.npy")]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {
        (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
    }


@pytest.mark.parametrize("codec", ["png", "jpeg", "webp"])
def test_webdataset_reads_it(tmp_path, codec):
    from torch.utils.data import DataLoader
    from webdataset import WebDataset

    sample_dataset(tmp_path, "webdataset", codec, tokens=True)
    shards = str(tmp_path / "shards" / "{00000..00002}.tar")
    extension = "jpg" if codec == "jpeg" else codec
    dataset = WebDataset(shards, shardshuffle=False).decode("pil")
    rows = list(DataLoader(dataset, batch_size=None, num_workers=0))
    assert [row["cls"] for row in rows] == EXPECTED_LABELS
    assert [row["json"]["index"] for row in rows] == list(range(10))
    assert [row["json"]["class_name"] for row in rows] == [CLASS_NAMES[label] for label in EXPECTED_LABELS]
    assert rows[2]["json"] == {
        "index": 2,
        "label": 3,
        "class_name": "crane",
        "seed": 7,
        "draft_steps": 3,
        "note": "no 2",
        "weight": 1.0,
    }
    assert rows[0]["json"]["weight"] is None, "NaN is not JSON"
    tokens = np.concatenate([pixel_shard(shard, PLAN, tokens=True).tokens for shard in range(3)])
    np.testing.assert_array_equal([row["tokens.npy"] for row in rows], tokens)
    images = np.stack([np.asarray(row[extension]) for row in rows])
    assert images.shape == (10, 12, 12, 3)
    if codec == "png":
        np.testing.assert_array_equal(images, expected_pixels(tokens=True))


def test_pyarrow_reads_parquet_with_types(tmp_path):
    sample_dataset(tmp_path, "parquet", tokens=True)
    table = pq.read_table(tmp_path / "shards")
    assert {field.name: str(field.type) for field in table.schema} == {
        "image": "struct<bytes: binary, path: string>",
        "index": "int64",
        "label": "int64",
        "class_name": "string",
        "seed": "int64",
        "draft_steps": "int32",
        "tokens": "fixed_size_list<element: uint16>[5]",
        "note": "string",
        "weight": "float",
    }
    assert table["label"].to_pylist() == EXPECTED_LABELS
    assert math.isnan(table["weight"][0].as_py()) and table["note"].to_pylist()[:2] == ["no 0", None]
    row = table["image"][9].as_py()
    assert row["path"] == "000000009.png"
    assert read_provenance(row["bytes"]).for_image(9, 1, "crane") == read_provenance(row["bytes"])


def load(*args, cache, **kwargs):
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(*args, split="train", cache_dir=str(cache), **kwargs)


def assert_is_the_sample(dataset):
    label = dataset.features["label"]
    assert label.names == ["train", "crane (1)", "a|b/../c", "crane (3)", "test set", "é<&>"]
    assert dataset["label"][:] == [EXPECTED_LABELS[i] for i in dataset["index"]]
    assert sorted(dataset["index"]) == list(range(10))
    assert all(isinstance(row["image"], Image.Image) for row in dataset)
    for row in dataset:
        np.testing.assert_array_equal(np.asarray(row["image"]), expected_pixels()[row["index"]])
    assert dataset["note"][2] == "no 2" and str(dataset.features["weight"].dtype) == "float32"


def test_datasets_reads_parquet(tmp_path):
    sample_dataset(tmp_path / "out", "parquet")
    files = str(tmp_path / "out" / "shards" / "*.parquet")
    assert_is_the_sample(load("parquet", data_files=files, cache=tmp_path / "cache"))


def test_datasets_reads_the_folder_with_its_class_names(tmp_path):
    sample_dataset(tmp_path / "out", "folder")
    for place in ("out/images", "out"):
        dataset = load("imagefolder", data_dir=str(tmp_path / place), cache=tmp_path / "cache")
        assert_is_the_sample(dataset)


@pytest.mark.parametrize("name", ["parquet", "folder"])
def test_datasets_reads_the_place_by_its_card(tmp_path, name):
    sample_dataset(tmp_path / "test set", name)  # a word that could be taken for a split
    assert_is_the_sample(load(str(tmp_path / "test set"), cache=tmp_path / "cache"))


def test_datasets_reads_webdataset_by_its_card(tmp_path):
    sample_dataset(tmp_path / "out", "webdataset")
    dataset = load(str(tmp_path / "out"), cache=tmp_path / "cache")
    assert dataset["cls"][:] == EXPECTED_LABELS and isinstance(dataset[0]["png"], Image.Image)


def test_every_folder_below_images_is_a_label_with_images_only(tmp_path):
    """What torchvision's ImageFolder asks: it takes every folder for a class and refuses an empty one."""
    sample_dataset(tmp_path, "folder")
    folders = sorted(path for path in (tmp_path / "images").iterdir() if path.is_dir())
    assert [int(folder.name) for folder in folders] == sorted(LABELS)
    for folder in folders:
        names = sorted(path.name for path in folder.iterdir())
        assert names == [f"{i:09d}.png" for i in range(10) if EXPECTED_LABELS[i] == int(folder.name)]


def test_json_holds_what_json_can_hold():
    shard = encoded_shard(2, PLAN)
    day = datetime.date(2024, 2, 29)
    shard.extra = {
        "day": pa.array([day, None]),
        "price": pa.array([decimal.Decimal("1.50"), None]),
        "nested": pa.array([{"scores": [float("inf"), 2.0]}, None]),
        "flag": pa.array([True, False]),
    }
    ((_, data),) = shard_files(shard, sample_format("webdataset"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        row = json.loads(tar.extractfile("000000008.json").read())
    assert (row["day"], row["price"], row["flag"]) == ("2024-02-29", "1.50", True)
    assert row["nested"] == {"scores": [None, 2.0]}


def test_columns_that_do_not_fit_are_refused_before_the_job():
    clash = pa.table({"seed": [1], "note": [""]})
    for name in FORMATS:
        with pytest.raises(InputError, match="columns seed of the label file"):
            sample_format(name).check_extra(clash)
    nested_bytes = pa.table({"binary_name": [""], "blobs": [[b""]]})
    with pytest.raises(InputError, match="column 'blobs' is list<item: binary>") as caught:
        sample_format("webdataset").check_extra(nested_bytes)
    assert caught.value.hint.startswith("use --format parquet")
    sample_format("parquet").check_extra(nested_bytes)
    with pytest.raises(InputError, match="format: expected one of webdataset, parquet, folder, got 'zip'"):
        sample_format("zip")


def test_class_names_become_unique():
    assert unique_class_names(["crane", "cat", "crane"]) == ["crane (0)", "cat", "crane (2)"]


class CountingFile(io.BytesIO):
    num_read = 0

    def read(self, *args):
        data = super().read(*args)
        self.num_read += len(data)
        return data


@pytest.mark.parametrize("name", FORMATS)
def test_reading_images_back_takes_the_first_of_each_wanted_label(name):
    plan = ShardPlan(12, 12)
    shard = encoded_shard(0, plan)
    files = dict(shard_files(shard, sample_format(name)))
    read = []
    wanted = {1: 2, 5: 1}
    for path in files:
        left = {label: n - sum(label == other for other, _ in read) for label, n in wanted.items()}
        read += read_images(lambda p: io.BytesIO(files[p]), path, sample_format(name), left)
    assert read == [(1, shard.images[1]), (5, shard.images[3]), (1, shard.images[5])]


def test_reading_from_a_tar_skips_what_is_not_wanted():
    shard = encoded_shard(0, ShardPlan(12, 12))
    shard.images = [image + bytes(100_000) for image in shard.images]
    ((path, data),) = shard_files(shard, sample_format("webdataset"))
    file = CountingFile(data)
    assert [label for label, _ in read_images(lambda _: file, path, sample_format(), {3: 1})] == [3]
    assert file.num_read < 150_000 < len(data) / 5


def test_encoder_gives_each_image_its_own_provenance_and_keeps_the_rows():
    pixels = pixel_shard(1, PLAN, tokens=True)
    encoded = ImageEncoder("png", 90, read_provenance(encoded_shard(0, PLAN).images[0]), CLASS_NAMES)(pixels)
    made = [read_provenance(image) for image in encoded.images]
    assert [(p.index, p.label, p.class_name) for p in made] == [
        (4, 0, "train"),
        (5, 1, "crane"),
        (6, 3, "crane"),
        (7, 5, "é<&>"),
    ]
    assert encoded.tokens is pixels.tokens and encoded.extra["note"].equals(pixels.extra["note"])
    assert encoded.seconds["draft"] == 0.5 and encoded.seconds["encode"] > 0
    pixels.label[2] = len(CLASS_NAMES)
    with pytest.raises(InputError, match="label: expected 0 to 5, got 6 at index 6"):
        ImageEncoder("png", 90, made[0], CLASS_NAMES)(pixels)


def test_a_shard_checks_its_columns():
    index, label = np.arange(3), np.zeros(3, np.int32)
    with pytest.raises(JobError, match="label: expected int32 of 1 dimensions, got int64"):
        ShardRows(shard=4, index=index, label=index)
    with pytest.raises(JobError, match="shard 4: images: expected 3 rows, got 2"):
        EncodedShard(shard=4, index=index, label=label, images=[b"", b""])
    with pytest.raises(JobError, match="note: expected 3 rows, got 1"):
        ShardRows(shard=4, index=index, label=label, extra={"note": ["x"]})
    with pytest.raises(JobError, match="pixels: expected uint8 of 4 dimensions"):
        PixelShard(shard=4, index=index, label=label, pixels=np.zeros((3, 2, 2), np.uint8))
    prefix = PrefixShard.of(
        ShardRows(shard=4, index=index, label=label, seconds={"a": 1.0}),
        prefix=np.zeros((3, 5), np.uint16),
        draft_steps=2,
    )
    assert (prefix.shard, prefix.seconds, len(prefix)) == (4, {"a": 1.0}, 3)
