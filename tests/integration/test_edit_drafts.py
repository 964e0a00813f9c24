"""`tandem draft-edits` and `tandem refine`: the bytes of `tandem edit`, and the same drafts refined otherwise."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.runs import digests
from tandem_jobs.cli import main

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROWS = ["picture,class_name,box,cfg", '0,ant,"0,0,0.5,1",2', "1,none,,0", '2,cat,"4,4,12,12",', "0,dog,,1"]
KEPT = ("--format", "parquet", "--keep-tokens", "--batch", "3")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Three pictures, one with alpha, their masks, and a file of edits."""
    folder, draw = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    for name in ("pictures", "masks"):
        (folder / name).mkdir()
    for number, shape in enumerate([(16, 16, 3), (18, 20, 4), (24, 16, 3)]):
        Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(folder / f"pictures/{number}.png")
        mask = np.zeros(shape[:2], np.uint8)
        mask[5:9, 5:12] = 255
        Image.fromarray(mask).save(folder / f"masks/{number}.png")
    (folder / "edits.csv").write_text("\n".join(ROWS))
    return folder


def what(inputs: Path, models: dict[str, str], *roles: str) -> list[str]:
    files = [part for role in roles for part in (f"--{role}", models[role])]
    edits = ["--masks", str(inputs / "masks"), "--labels", str(inputs / "edits.csv")]
    return [str(inputs / "pictures"), *edits, *files, "--seed", "4", "--shard-size", "2"]


@pytest.fixture(scope="module")
def drafts(ray_cluster, inputs, tiny_models, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("drafts") / "drafts")
    argv = ["draft-edits", *what(inputs, tiny_models, "drafter", "vqvae"), "--batch", "3", "--out", out]
    assert main([*argv, "--drafters", "1"]) == 0
    before = Path(out, "manifest/00000.json").stat().st_mtime_ns
    assert main(argv) == 0
    assert Path(out, "manifest/00000.json").stat().st_mtime_ns == before  # nothing was left to do
    return out


def refine(models: dict[str, str], drafts: str, out: str, *more: str) -> int:
    weights = ["--refiner", models["refiner"], "--vqvae", models["vqvae"], "--refiners", "1"]
    return main(["refine", "--drafts", drafts, *weights, *KEPT, "--out", out, *more])


def decoded(out: str, capsys, *more: str) -> tuple[dict[str, int], list[str]]:
    """What `tandem verify --decode` counted, and its problems."""
    capsys.readouterr()
    _ = main(["verify", out, "--decode", "10", *more])
    told = json.loads(capsys.readouterr().out)
    return {name: told["decoded"][name] for name in ("images", "identical")}, told["problems"]


def test_the_halves_give_the_bytes_of_the_whole_and_its_ids_decode_to_them(
    inputs, tiny_models, drafts, out, tmp_path, capsys
):
    whole = str(tmp_path / "whole")
    argv = ["edit", *what(inputs, tiny_models, *tiny_models), *KEPT, "--placement", "colocated", "--drafters", "1"]
    assert main([*argv, "--out", whole]) == 0
    assert refine(tiny_models, drafts, out) == 0
    assert digests(out) == digests(whole) and len(digests(out)) == 2
    assert "pictures of which a part was drawn anew" in Path(out, "README.md").read_text()
    assert main(["verify", drafts]) == 0
    assert decoded(out, capsys) == ({"images": 4, "identical": 4}, [])


def test_drafts_of_edits_are_refined_again_from_fewer_scales_and_put_back_otherwise(
    inputs, tiny_models, drafts, out, capsys
):
    assert refine(tiny_models, drafts, out, "--blend", "paste", "--draft-steps", "1", "--cfg", "0") == 0
    images, ids = pq.read_table(Path(out, "shards")), pq.read_table(Path(drafts, "shards"))
    assert [row[:1] for row in images["tokens"].to_pylist()] == [row[:1] for row in ids["tokens"].to_pylist()]
    for name in ("source_tokens", "drawn_cells", "picture_sha256"):
        assert images[name].to_pylist() == ids[name].to_pylist()
    made = np.array(Image.open(io.BytesIO(images["image"][2]["bytes"].as_py())))
    before = np.asarray(Image.open(inputs / "pictures/2.png"))
    assert (made[4:12, 4:12] != before[4:12, 4:12]).any()
    made[4:12, 4:12] = before[4:12, 4:12]
    np.testing.assert_array_equal(made, before)
    capsys.readouterr()
    assert refine(tiny_models, drafts, out, "--draft-steps", "1", "--cfg", "0") != 0
    assert "holds another job" in capsys.readouterr().err


def test_a_picture_that_changed_since_it_was_drafted_is_named(inputs, tiny_models, drafts, out, capsys):
    path = inputs / "pictures/1.png"
    kept = path.read_bytes()
    Image.new("RGB", (20, 18), "red").save(path)
    try:
        assert refine(tiny_models, drafts, out) == 1
    finally:
        path.write_bytes(kept)
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "shard 0: write: 1.png: expected the picture that was encoded, sha256 " in error


def test_pictures_that_are_gone_or_others_are_said_and_found_elsewhere(tiny_models, drafts, out, inputs, capsys):
    recorded = json.loads(Path(drafts, "job.json").read_text())["info"]["edit"]
    assert recorded == {
        "pictures": str(inputs / "pictures"),
        "masks": str(inputs / "masks"),
        "nearest": False,
    }
    moved = (inputs / "masks").rename(inputs / "moved")
    try:
        assert refine(tiny_models, drafts, out) == 2
        said = capsys.readouterr().err
        assert f"--drafts: its pictures: expected pictures at {inputs}/masks, there is nothing" in said
        assert "--pictures, --mask and --masks say where they are now" in said and not Path(out).exists()
        how = ("--format", "webdataset", "--codec", "jpeg", "--quality", "60", "--blend", "none")
        assert refine(tiny_models, drafts, out, *how, "--masks", str(moved)) == 0
        assert decoded(out, capsys, "--masks", str(moved)) == ({"images": 4, "identical": 4}, [])
        mask = (moved / "0.png").read_bytes()
        (moved / "0.png").write_bytes((inputs / "pictures/0.png").read_bytes())
        (changed,) = decoded(out, capsys, "--masks", str(moved))[1]
        (moved / "0.png").write_bytes(mask)
        last = (inputs / "pictures/2.png").rename(inputs / "2.png")
        (fewer,) = decoded(out, capsys, "--masks", str(moved))[1]
        last.rename(inputs / "pictures/2.png")
    finally:
        moved.rename(inputs / "masks")
    assert changed.startswith("0.png: expected the mask that was encoded, sha256 ")
    assert fewer.startswith(f"{inputs}/pictures: expected 3 or more pictures, got 2 (to heal it: put the pictures back")
