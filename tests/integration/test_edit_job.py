"""`tandem edit` on a real local cluster: bytes, resume after kills, refusals."""

from __future__ import annotations

import hashlib
import io
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.runs import committed, digests, start, wait_until
from tandem_jobs.cli import main
from tandem_workers.dataset.verify import verify
from tandem_workers.storage.places import open_store

pytestmark = pytest.mark.usefixtures("ray_cluster")
PICTURES = 25
CENTRE = ("--box", "0.25,0.25,0.75,0.75")
FIVE = ("--n", "5")
ONE_ACTOR = ("--placement", "colocated", "--drafters", "1")  # each takes seconds to start


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Class folders with pictures of several sizes."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(PICTURES):
        path = folder / ("ant" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16 + number % 5, 16, 3), np.uint8)).save(path)
    return folder


def command(
    models: dict[str, str],
    pictures: Path,
    out: str,
    *more: str,
    what: Sequence[str] = CENTRE,
    label: str | None = "ant,bee,cat,none",
) -> list[str]:
    files = [part for role, path in models.items() for part in (f"--{role}", path)]
    size = ["--seed", "4", "--batch", "4", "--shard-size", "20"]
    chosen = [] if label is None else ["--label", label]
    return ["edit", str(pictures), *files, *what, *chosen, *size, "--out", out, *more]


@pytest.fixture(scope="module")
def undisturbed_edits(ray_cluster, tiny_models, pictures, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("edits") / "out")
    assert main(command(tiny_models, pictures, out, *FIVE, *ONE_ACTOR)) == 0
    return out


def test_a_dataset_of_edits_is_whole_and_says_what_was_done(undisturbed_edits, pictures):
    store = open_store(undisturbed_edits)
    verdict = verify(store)
    assert (verdict.rows, verdict.complete, verdict.problems) == (500, True, [])
    card = store.read("README.md").decode()
    assert "pictures of which a part was drawn anew" in card and "none is a photograph" not in card
    assert "compositeWithTrainedAlgorithmicMedia" in card and f"`{pictures.name}`" in card


def test_pictures_of_every_size_keep_their_pixels_outside_the_seam(tiny_models, pictures, out):
    how = ("--format", "parquet", "--blend", "paste", "--keep-tokens")
    assert main(command(tiny_models, pictures, out, *how, *ONE_ACTOR, label="own")) == 0
    table = pq.read_table(Path(out, "shards"))
    assert table["class_name"].to_pylist() == ["ant"] * 12 + ["dog"] * 13
    for row in (0, 13, 24):
        name = table["picture"][row].as_py()
        given = pictures / name
        made = np.array(Image.open(io.BytesIO(table["image"][row]["bytes"].as_py())))
        before = np.asarray(Image.open(given))
        assert hashlib.sha256(given.read_bytes()).hexdigest() == table["picture_sha256"][row].as_py()
        assert made.shape == before.shape
        height = len(before)
        inner = slice(int(height * 0.25), int(np.ceil(height * 0.75))), slice(4, 12)
        assert (made[inner] != before[inner]).any()
        made[inner] = before[inner]
        np.testing.assert_array_equal(made, before)
    assert len(table["source_tokens"][0]) == 30 and len(table["drawn_cells"][0]) == 2


@pytest.mark.slow
def test_a_job_of_500_edits_killed_twice_has_the_bytes_of_one_that_was_not(
    undisturbed_edits, tiny_models, pictures, out, tmp_path
):
    argv = command(tiny_models, pictures, out, *FIVE)
    for _ in range(2):
        there = committed(out)
        run = start(argv, tmp_path / "log")
        wait_until(lambda there=there: committed(out) >= there + 2, "two shards more")
        run.send_signal(signal.SIGKILL)
        run.wait(timeout=20)
    assert 4 <= committed(out) < PICTURES
    assert main(argv) == 0
    assert digests(out) == digests(undisturbed_edits)
    assert not verify(open_store(out)).problems


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"label": "unicorn"}, "--label: expected a class name or a number from 0 to 4, got 'unicorn'"),
        ({"what": ("--masks", "{pictures}/ant")}, "has none for 25 of 25"),
        ({"what": ("--mask", "{pictures}/ant")}, "--mask: expected one image"),
    ],
)
def test_bad_input_ends_with_one_line_and_nothing_written(tiny_models, pictures, out, capfd, change, expected):
    change = {"what": [part.format(pictures=pictures) for part in change.get("what", CENTRE)]} | (
        {"label": change["label"]} if "label" in change else {}
    )
    assert main(command(tiny_models, pictures, out, **change)) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and expected in errors[0]
    assert not Path(out).exists()


def test_a_picture_that_only_a_worker_reads_ends_with_one_line(tiny_models, pictures, out, capfd, tmp_path):
    boxes = ["0 0 8 8"] * 64 + ["0 0 40 40"]
    rows = [f'{at % PICTURES},0,"{box.replace(" ", ",")}"' for at, box in enumerate(boxes)]
    (tmp_path / "edits.csv").write_text("\n".join(["picture,label,box", *rows]))
    argv = command(tiny_models, pictures, out, *ONE_ACTOR, what=("--labels", str(tmp_path / "edits.csv")), label=None)
    assert main(argv) == 1
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert "shard 3: source: " in error and ".png: box: expected one within 16 x " in error


def test_another_edit_is_another_job(undisturbed_edits, tiny_models, pictures, capfd):
    assert main(command(tiny_models, pictures, undisturbed_edits, *FIVE, "--blend", "none")) != 0
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert "holds another job" in error
