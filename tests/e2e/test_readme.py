"""What the README shows works as printed. That its commands are understood: unit/test_docs.py."""

import base64
import io
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.M | re.S)
LINES = [line for _, block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
CURL_LINES = [line for line in LINES if line.startswith("curl ")]


def test_the_python_example_makes_images():
    (program,) = [block for kind, block in BLOCKS if kind == "python"]
    names: dict = {}
    exec(compile(program, "README.md", "exec"), names)
    pixels = names["pixels"]
    assert pixels.shape == (3, 3, 64, 64)
    assert torch.isfinite(pixels).all()
    assert 0 <= pixels.min() < pixels.max() <= 1


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
