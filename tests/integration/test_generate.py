"""`tandem generate` on a real local cluster with simulated GPUs: bytes, placement, resume, readers, refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from support.tiny_models import CLASS_NAMES, NUM_CLASSES
from tandem.images import read_provenance
from tandem_jobs.cli import main
from tandem_jobs.generate import GenerateSpec, run
from tandem_jobs.options.spec import parse

pytestmark = pytest.mark.usefixtures("ray_cluster")
IMAGES = 22  # 6 shards of 4: the last is short
GIVEN_NAMES = ("ant", "bee, honeybee", "cat", "dog")  # by --class-names, for one of the formats
ONE_ACTOR = ("--placement", "colocated", "--drafters", "1")  # where it does not matter: each takes seconds to start


def options(models: dict[str, str], out: str, *more: str) -> list[str]:
    files = [part for role, path in models.items() for part in (f"--{role}", path)]
    size = ["--classes", "all", "--images", str(IMAGES), "--batch", "3", "--shard-size", "4"]
    return [*files, *size, "--out", out, *more]


def generate(models: dict[str, str], out: str, *more: str) -> dict:
    return run(parse(GenerateSpec, options(models, out, *more), "tandem generate"))


def digests(out: str) -> dict[str, str]:
    """Hash of every shard file."""
    root = Path(out)
    files = [p for part in ("shards", "images") for p in sorted((root / part).rglob("*")) if p.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def reference_run(tiny_models, tmp_path_factory) -> tuple[str, dict]:
    """Its shards are larger than a block of Ray Data may be: the limit is low here, as 128 MiB would take many."""
    from ray.data import DataContext

    DataContext.get_current().target_max_block_size = 1024
    out = str(tmp_path_factory.mktemp("split") / "out")
    return out, generate(tiny_models, out, "--placement", "split", "--drafters", "2", "--refiners", "1")


def test_a_split_run_pins_stages_to_disjoint_gpus_that_work_at_once(reference_run):
    _, summary = reference_run
    drafters, refiners = (set(summary["stages"][stage]["replicas"]) for stage in ("draft", "refine"))
    assert len(drafters) <= 2
    assert len(refiners) == 1
    assert all("/gpu" in name for name in drafters | refiners)
    assert drafters.isdisjoint(refiners)
    assert summary["images"] == IMAGES
    assert summary["simulated_gpus"] is True
    assert set(summary["stages"]) == {"read", "draft", "refine", "encode", "store"}


def test_the_dataset_is_whole(reference_run):
    out = Path(reference_run[0])
    entries = [json.loads(p.read_text()) for p in sorted((out / "manifest").iterdir())]
    assert [e["shard"] for e in entries] == list(range(6))
    assert [e["rows"] for e in entries] == [4, 4, 4, 4, 4, 2]
    for name in ("_SUCCESS", "job.json", "README.md", "contact_sheet.png"):
        assert (out / name).is_file(), name
    for entry in entries:
        for file in entry["files"]:
            assert hashlib.sha256((out / file["path"]).read_bytes()).hexdigest() == file["sha256"]


@pytest.mark.parametrize(
    "placement",
    [
        ("--placement", "colocated", "--drafters", "2"),
        ("--placement", "cpu", "--drafters", "1", "--refiners", "2"),
        ("--placement", "mixed", "--drafters", "1", "--refiners", "1", "--colocated", "1"),
    ],
    ids=["colocated", "cpu", "mixed"],
)
def test_bytes_do_not_depend_on_placement(reference_run, tiny_models, out, placement):
    generate(tiny_models, out, *placement)
    assert digests(out) == digests(reference_run[0])


def test_a_job_leaves_ray_data_as_it_was(reference_run):
    """What else this process runs on Ray Data, an evaluation or a program's own work, has none of a job's limits."""
    doubled = ray.data.range(4).map_batches(lambda rows: {"id": 2 * rows["id"]})
    assert sorted(row["id"] for row in doubled.take_all()) == [0, 2, 4, 6]


def test_the_same_command_again_does_nothing(reference_run, tiny_models, capsys):
    before = digests(reference_run[0])
    times = {p: p.stat().st_mtime_ns for p in Path(reference_run[0]).rglob("*")}
    summary = generate(tiny_models, reference_run[0], "--placement", "cpu")
    assert summary["images"] == 0
    assert summary["resumed_shards"] == 6
    assert digests(reference_run[0]) == before
    assert {p: p.stat().st_mtime_ns for p in Path(reference_run[0]).rglob("*") if p in times} == times
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["total_images"] == IMAGES


def test_lost_shards_are_made_again_alike(reference_run, tiny_models, out):
    shutil.copytree(reference_run[0], out)
    for path in ("manifest/00001.json", "manifest/00005.json", "shards/00005.tar", "_SUCCESS"):
        (Path(out) / path).unlink()
    summary = generate(tiny_models, out, *ONE_ACTOR)
    assert summary["images"] == 6
    assert digests(out) == digests(reference_run[0])


def test_another_job_in_the_same_place_is_refused(reference_run, tiny_models, capsys):
    before = digests(reference_run[0])
    code = main(["generate", *options(tiny_models, reference_run[0], "--cfg", "2.5", "--placement", "cpu")])
    printed = capsys.readouterr().err
    assert code == 2
    assert "holds another job" in printed
    assert "decoding.sampling.cfg: there 1.5, here 2.5" in printed
    assert "hint: " in printed
    assert digests(reference_run[0]) == before


def test_overwrite_replaces_it_and_another_seed_gives_other_images(reference_run, tiny_models, out):
    shutil.copytree(reference_run[0], out)
    (Path(out) / "notes.txt").write_text("mine")
    generate(tiny_models, out, *ONE_ACTOR, "--seed", "1", "--overwrite")
    mine, theirs = digests(out), digests(reference_run[0])
    assert all(name.endswith("-1.tar") for name in mine)  # of the next epoch
    mine = {name.replace("-1.tar", ".tar"): digest for name, digest in mine.items()}
    assert mine.keys() == theirs.keys()
    assert all(mine[name] != theirs[name] for name in mine)
    assert (Path(out) / "notes.txt").read_text() == "mine"


def read_webdataset(out: Path) -> dict[int, tuple[np.ndarray, int]]:
    import torch.utils.data
    import webdataset

    urls = [str(p) for p in sorted((out / "shards").iterdir())]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json")
    loader = torch.utils.data.DataLoader(samples, batch_size=None, num_workers=0)
    return {row["index"]: (np.asarray(image), int(label)) for image, label, row in loader}


def read_parquet(out: Path) -> dict[int, tuple[np.ndarray, int]]:
    import io

    from PIL import Image

    rows = pq.read_table(out / "shards").to_pylist()
    return {r["index"]: (np.asarray(Image.open(io.BytesIO(r["image"]["bytes"]))), r["label"]) for r in rows}


def read_hugging_face(out: Path) -> dict[int, tuple[np.ndarray, int]]:
    from datasets import load_dataset

    files = sorted(map(str, (out / "shards").glob("*.parquet")))
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(out.parent / "cache"))
    assert data.features["label"].names == list(GIVEN_NAMES)
    return {row["index"]: (np.asarray(row["image"]), row["label"]) for row in data}


def read_image_folder(out: Path) -> dict[int, tuple[np.ndarray, int]]:
    from datasets import load_dataset

    data = load_dataset("imagefolder", data_dir=str(out / "images"), split="train", cache_dir=str(out.parent / "cache"))
    return {row["index"]: (np.asarray(row["image"]), row["label"]) for row in data}


@pytest.fixture(scope="module")
def pixels_by_format(reference_run, tiny_models, tmp_path_factory) -> dict[str, Path]:
    """The same rows thrice, for parquet from a label file and with class names of a file."""
    parquet, folder = (tmp_path_factory.mktemp(fmt) / "out" for fmt in ("parquet", "folder"))
    generate(tiny_models, str(folder), *ONE_ACTOR, "--format", "folder")
    named = [CLASS_NAMES[index % NUM_CLASSES] for index in range(IMAGES)]
    rows = parquet.with_name("rows.csv")
    rows.write_text("class_name,prompt\n" + "".join(f"{name.upper()},a {name}\n" for name in named))
    names = parquet.with_name("names.txt")
    names.write_text("\n".join(GIVEN_NAMES))
    args = options(tiny_models, str(parquet), *ONE_ACTOR, "--format", "parquet", "--keep-tokens")
    assert args[6:10] == ["--classes", "all", "--images", str(IMAGES)]
    command = ["generate", *args[:6], "--labels", str(rows), *args[10:]]
    assert main([*command, "--class-names", str(names)]) == 0
    assert main(command) == 2  # with the names of the weights it is another job
    return {"webdataset": Path(reference_run[0]), "parquet": parquet, "folder": folder}


@pytest.mark.parametrize(
    ("fmt", "reader"),
    [
        ("webdataset", read_webdataset),
        ("parquet", read_parquet),
        ("parquet", read_hugging_face),
        ("folder", read_image_folder),
    ],
)
def test_other_peoples_readers_find_every_image_once_with_its_label(pixels_by_format, fmt, reader):
    found = reader(pixels_by_format[fmt])
    assert sorted(found) == list(range(IMAGES))
    assert all(label == index % NUM_CLASSES for index, (_, label) in found.items())
    expected = read_webdataset(pixels_by_format["webdataset"])
    for index, (pixels, _) in found.items():
        np.testing.assert_array_equal(pixels, expected[index][0])
    assert all(pixels.shape == (16, 16, 3) for pixels, _ in found.values())


def test_label_files_carry_their_columns(pixels_by_format):
    table = pq.read_table(pixels_by_format["parquet"] / "shards").to_pydict()
    assert table["index"] == list(range(IMAGES))
    assert table["prompt"] == [f"a {CLASS_NAMES[index % NUM_CLASSES]}" for index in range(IMAGES)]
    assert table["class_name"] == [GIVEN_NAMES[index % NUM_CLASSES] for index in range(IMAGES)]
    job = json.loads((pixels_by_format["parquet"] / "job.json").read_text())
    assert job["info"]["class_names"] == list(GIVEN_NAMES)
    assert "| 1 | bee, honeybee |" in (pixels_by_format["parquet"] / "README.md").read_text()
    assert {len(tokens) for tokens in table["tokens"]} == {30}


def test_images_say_where_they_come_from(pixels_by_format):
    file = next((pixels_by_format["folder"] / "images" / "00002").iterdir())
    provenance = read_provenance(file.read_bytes())
    assert provenance.class_name == "cat"
    assert provenance.index == int(file.stem)
    assert len(provenance.drafter_sha256) == 64
    assert b"trainedAlgorithmicMedia" in file.read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--classes", "ant,wolf"], "--classes: expected a class name or a number from 0 to 3, got 'wolf'"),
        (["--classes", "0-4"], "expected labels 0 to 3, got 4"),
        (["--draft-steps", "0"], "--draft-steps: expected 1 to 3 (the pyramid has 4 scales), got 0"),
        (["--draft-steps", "4"], "--draft-steps: expected 1 to 3 (the pyramid has 4 scales), got 4"),
        (
            ["--placement", "split", "--drafters", "3", "--refiners", "2"],
            "expected at most 4 GPUs, got 5 replicas",
        ),
        (["--placement", "colocated", "--drafters", "5"], "expected at most 4 GPUs, got 5 replicas"),
        (["--refiner", "d16"], "d16 is a preset, which has no weights of its own"),
        (["--top-p", "1.5"], "--top-p"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(tiny_models, out, capsys, more, message):
    assert main(["generate", *options(tiny_models, out, *more)]) == 2
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in printed
    assert not Path(out).exists()
