"""The programs of examples/ do what they say: on small datasets, and on one in S3."""

import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.s3_server import made_bucket
from support.sample_shards import CLASS_NAMES, LABELS, PROVENANCE, finished, pixel_shard, sample_dataset, sample_format
from tandem_workers.dataset.shards import EncodedShard, ShardPlan
from tandem_workers.stages.encoder import ImageEncoder

EXAMPLES = Path(__file__).parents[2] / "examples"
COLOURS = np.array([(230, 20, 20), (20, 230, 20), (20, 20, 230), (230, 230, 20), (20, 230, 230), (230, 20, 230)])


def coloured(shard: int, plan: ShardPlan) -> EncodedShard:
    """Images whose colour tells their label, in some noise."""
    pixels = pixel_shard(shard, plan)
    colours_B113 = COLOURS[pixels.label][:, None, None]
    mixed = (0.8 * colours_B113 + 0.2 * pixels.pixels).astype(np.uint8)
    return ImageEncoder("png", 90, PROVENANCE, CLASS_NAMES)(replace(pixels, pixels=mixed))


def test_the_library_shows_every_scale_of_images_that_are_sampled_in_ways_of_their_own(tmp_path, capsys):
    runpy.run_path(str(EXAMPLES / "library.py"))["main"](str(tmp_path / "previews.png"))
    picture = np.asarray(Image.open(tmp_path / "previews.png"))
    assert picture.shape == (4 * 64, 7 * 64, 3)
    assert (picture[:64] != picture[64:128]).any()  # two ways to sample a face
    columns = [picture[:, 64 * k : 64 * (k + 1)] for k in range(7)]
    assert all((columns[k] != columns[k + 1]).any() for k in range(6))
    assert "110 bytes an image" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["webdataset", "parquet", "folder"])
def test_datasets_of_all_formats_are_counted(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sample_dataset(tmp_path / "out", name)
    runpy.run_path(str(EXAMPLES / "read_dataset.py"))["main"](str(tmp_path / "out"))
    first, *counts, total = capsys.readouterr().out.splitlines()
    assert first == "first image: tandem 0.0, seed 7, N = 3"
    expected = [LABELS[index % len(LABELS)] for index in range(10)]
    assert counts == [f"{label} {CLASS_NAMES[label]}: {expected.count(label)}" for label in sorted(LABELS)]
    assert total == "10 images"


def test_a_dataset_that_is_not_complete_is_refused(tmp_path):
    sample_dataset(tmp_path / "out", "webdataset")
    (tmp_path / "out" / "_SUCCESS").unlink()
    with pytest.raises(SystemExit, match="expected a complete dataset, got no _SUCCESS"):
        runpy.run_path(str(EXAMPLES / "read_dataset.py"))["main"](str(tmp_path / "out"))


def test_a_classifier_learns_from_a_dataset_that_streams_from_s3(s3_server):
    plan = ShardPlan(96, 32)
    with made_bucket("examples"):
        shards = [coloured(shard, plan) for shard in range(plan.num_shards)]
        finished("s3://examples/colours", sample_format(), shards, plan)
        program = [sys.executable, str(EXAMPLES / "train_classifier.py"), "s3://examples/colours"]
        options = ["--steps", "40", "--batch", "16", "--classes", "6", "--workers", "1"]
        ran = subprocess.run([*program, *options], capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr
    shard, result = re.findall(r"^accuracy on (\S+): ([\d.]+)$", ran.stdout, re.M)[0]
    assert shard == "s3://examples/colours/shards/00002.tar"  # held out
    assert float(result) > 0.9
