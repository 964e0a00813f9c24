"""What README and guide show works as printed. That their commands are understood: unit/test_docs.py."""

import base64
import io
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from support.sample_shards import CLASS_NAMES, LABELS, sample_dataset
from tandem_workers.dataset.shards import ShardPlan

ROOT = Path(__file__).parents[2]
BLOCKS = [
    block
    for name in ("README.md", "docs/GUIDE.md")
    for block in re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text(), flags=re.M | re.S)
]
READING, LIBRARY, EDITING = (block for kind, block in BLOCKS if kind == "python")
LINES = [line for _, block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
CURL_LINES = [line for line in LINES if line.startswith("curl ")]


def test_the_python_example_makes_images():
    names: dict = {}
    exec(compile(LIBRARY, "README.md", "exec"), names)
    pixels = names["pixels"]
    assert pixels.shape == (3, 3, 64, 64)
    assert torch.isfinite(pixels).all()
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_the_editing_example_draws_the_middle_of_a_picture_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 70), "green").save("photo.png")
    names: dict = {}
    exec(compile(EDITING, "GUIDE.md", "exec"), names)
    edited, mask = names["edited"], names["mask"]
    assert edited.shape == (4, 70, 90, 3)
    assert (edited[:, 0, 0] == (0, 128, 0)).all()
    assert not (edited[:, mask] == (0, 128, 0)).all()


def test_the_dataset_that_make_generate_leaves_is_read_as_printed(tmp_path, monkeypatch):
    sample_dataset(tmp_path / "out", "webdataset", plan=ShardPlan(64, 8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict = {}
    exec(compile(READING, "README.md", "exec"), names)
    assert names["image"].size == (12, 12)
    assert names["sample"]["json"]["index"] == 63
    assert names["label"] == names["sample"]["json"]["label"] == LABELS[63 % len(LABELS)]
    assert names["class_name"] == CLASS_NAMES[names["label"]]
    assert sorted(row["index"] for row in names["table"]["json"]) == list(range(64))


@pytest.mark.parametrize("line", CURL_LINES)
def test_every_curl_line_runs_as_printed(line, served, tmp_path):
    assert served.url == "http://127.0.0.1:8000"
    command = ["bash", "-o", "pipefail", "-c", line.replace("curl ", "curl --fail ", 1)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    if " | " in line:  # the picture goes to a file
        assert ran.stdout == "" and Image.open(tmp_path / "face.png").size == (64, 64)
        return
    answer = ran.stdout.strip().rpartition("data: ")[2]  # of events the last one
    values = json.loads(answer)
    images = [row["b64_json"] for row in values.get("data", [values]) if "b64_json" in row]
    assert len(images) == ("generations" in line)
    for image in images:
        assert Image.open(io.BytesIO(base64.b64decode(image))).size == (64, 64)


def test_the_endpoint_example_leaves_a_picture():
    assert any('"face.png"' in line for line in CURL_LINES)
