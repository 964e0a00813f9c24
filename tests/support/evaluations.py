"""Small datasets to evaluate, their features extracted in this process, and the command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tandem_jobs.cli import main
from tandem_jobs.evaluation.extraction import feature_files
from tandem_workers.features.choose_extractor import choose_extractor
from tandem_workers.features.extract import Extraction, extract_block
from tandem_workers.pictures.source import open_pictures


def pictures(n: int, side: int = 16, seed: int = 0, shift: int = 0) -> NDArray[np.uint8]:
    """Pictures of random colours: uint8 [n, side, side, 3]."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(40, 160, (n, 1, 1, 3)) + shift
    return (colour + rng.integers(0, 40, (n, side, side, 3))).astype(np.uint8)


def save_folder(
    root: Path, pixels: NDArray[np.uint8], classes: tuple[str, ...] = ("ant", "bee"), first: int = 0
) -> str:
    """An image folder, classes in turn, files numbered from `first` on; returns its path."""
    for number, each in enumerate(pixels, first):
        path = root / classes[number % len(classes)] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        Image.fromarray(each).save(out, "PNG")
        path.write_bytes(out.getvalue())
    return str(root)


def extract_here(extractor: str, *places: str, features_out: str | None = None) -> None:
    """Make the feature files of places, without Ray."""
    network = choose_extractor(extractor)
    loaded = network.load(torch.device("cpu"))
    for place in places:
        source = open_pictures(place)
        work = Extraction(source, network, feature_files(source, network, features_out))
        work.files.claim()
        for block in work.missing():
            work.files.put(block, extract_block(source.read(block), network, loaded, 64))


def features_of(extractor: str, place: str) -> NDArray[np.float32]:
    """The features of a place, by block."""
    source = open_pictures(place)
    files = feature_files(source, choose_extractor(extractor), None)
    return np.concatenate([files.read(block).columns["features"] for block in range(source.num_blocks)])


def evaluated(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[dict[str, Any], str]:
    """The JSON and the other lines of `tandem evaluate`, which must succeed."""
    capsys.readouterr()
    code = main(["evaluate", *args])
    said = capsys.readouterr()
    assert code == 0, said.err

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in the report")

    return json.loads(said.out, parse_constant=refuse), said.err


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The error of `tandem evaluate`, which must be one line, with exit code 2."""
    capsys.readouterr()
    assert main(["evaluate", *args]) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.out == "" and len(errors) == 1 and "Traceback" not in said.err
    return said.err
