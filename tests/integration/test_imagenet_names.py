"""A class by its name, WordNet id and synonym, in `--classes`, a label file and a running endpoint: the same bytes."""

from __future__ import annotations

import base64
import csv
from pathlib import Path

import pytest
import requests
from ray import serve

from support.ports import free_port
from support.tiny_models import save_tiny_models
from tandem.images import read_provenance
from tandem_cluster.server import deployed
from tandem_cluster.session import describe_cluster
from tandem_jobs.cli import main
from tandem_jobs.serve import make_app
from tandem_jobs.serve_options import AppSpec

pytestmark = pytest.mark.usefixtures("ray_cluster")
SEED = 5
GOLDEN, SHADES = "golden retriever", "sunglasses, dark glasses, shades"
CLASSES = f'{GOLDEN},"{SHADES}"'  # in turn
# image by image: the class as the label file and as the endpoint are asked for it
SPELLINGS = (
    ("n02099601", "Golden_Retriever"),
    ("DARK GLASSES", "n04356056"),
    ("golden retriever", "n02099601"),
    ("n04356056", "dark glasses"),
)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models of 1,000 classes as published, without names. In batches of one, an image has no neighbours."""
    files = save_tiny_models(tmp_path_factory.mktemp("thousand"), 1000)
    one_actor = {"placement": "colocated", "drafters": "1"}  # each takes seconds to start
    return {**files, **one_actor, "batch": "1", "draft_steps": "2", "cfg": "2", "top_k": "20"}


def by_job(options: dict[str, str], out: Path, *rows: str) -> list[bytes]:
    """The image files of a job, in the order of their indices."""
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    fixed = ["--seed", str(SEED), "--shard-size", "4", "--format", "folder", "--out", str(out)]
    assert main(["generate", *flags, *fixed, *rows]) == 0
    return [path.read_bytes() for path in sorted((out / "images").rglob("*.png"), key=lambda path: path.stem)]


def by_endpoint(options: dict[str, str], prompts: list[str]) -> list[bytes]:
    """The i-th image of the seed for the i-th prompt."""
    bound, _, _ = make_app(AppSpec(**options), describe_cluster("in this process"))
    port, images = free_port(), []
    with deployed(bound, "imagenet", "127.0.0.1", port):
        for i, prompt in enumerate(prompts):
            body = {"prompt": prompt, "n": i + 1, "seed": SEED, "deterministic": True}
            answer = requests.post(f"http://127.0.0.1:{port}/v1/images/generations", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            images.append(base64.b64decode(answer.json()["data"][i]["b64_json"]))
    serve.shutdown()  # other tests on this cluster start Serve at other ports
    return images


def test_names_ids_and_synonyms_make_the_same_bytes_by_flag_label_file_and_endpoint(options, tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["class_name"], *([name] for name, _ in SPELLINGS)])
    flag = by_job(options, tmp_path / "flag", "--classes", CLASSES, "--images", str(len(SPELLINGS)))
    assert [read_provenance(image).class_name for image in flag] == [GOLDEN, SHADES] * 2
    assert len(set(flag)) == len(SPELLINGS)
    assert by_job(options, tmp_path / "file", "--labels", str(tmp_path / "rows.csv")) == flag
    assert by_endpoint(options, [prompt for _, prompt in SPELLINGS]) == flag
