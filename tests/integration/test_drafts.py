"""`tandem draft` and `tandem refine`: two jobs, the bytes of one."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.tiny_models import PATCH_NUMS
from tandem.config import Pyramid
from tandem.images import read_provenance
from tandem_jobs.cli import main
from tandem_workers.pictures.own_dataset import OwnDataset
from tandem_workers.pictures.picture_block import PictureBlock

pytestmark = pytest.mark.usefixtures("ray_cluster")
CELLS = [(3.0, 5, 7), (0.5, 7, None), (None, None, 7), (None, 3, None)]  # cfg, top_k and seed of four rows
BATCH = ["--batch", "3"]


def digests(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((out / "shards").iterdir())}


def refine(models: dict[str, str], drafts: Path, out: Path, *more: str) -> int:
    weights = ["--refiner", models["refiner"], "--vqvae", models["vqvae"]]
    one = ["--refiners", "1"]  # each takes seconds to start
    return main(["refine", "--drafts", str(drafts), *weights, *BATCH, *one, "--out", str(out), *more])


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[str]:
    """Eleven images of a file whose rows have settings of their own."""
    lines = [",".join("" if cell is None else str(cell) for cell in (i % 4, *CELLS[i % 4])) for i in range(11)]
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_text("\n".join(["label,cfg,top_k,seed", *lines]))
    return ["--labels", str(path), "--shard-size", "4", "--seed", "5"]


def draft(models: dict[str, str], rows: list[str], out: Path) -> int:
    weights = ["--drafter", models["drafter"], "--vqvae", models["vqvae"]]
    return main(["draft", *weights, *rows, *BATCH, "--out", str(out), "--placement", "gpu", "--drafters", "2"])


@pytest.fixture(scope="module")
def drafts(tiny_models, rows, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("drafts") / "drafts"
    assert draft(tiny_models, rows, out) == 0
    assert draft(tiny_models, rows, out) == 0  # nothing is left to do
    return out


@pytest.fixture(scope="module")
def generated(tiny_models, rows, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("generated") / "out"
    weights = [part for role, path in tiny_models.items() for part in (f"--{role}", path)]
    command = ["generate", *weights, *rows, *BATCH, "--out", str(out), "--format", "parquet", "--keep-tokens"]
    assert main(command) == 0
    return out


def test_drafts_are_the_first_scales_and_two_bytes_a_token(drafts, generated):
    pyramid = Pyramid(PATCH_NUMS)
    table, images = pq.read_table(drafts / "shards"), pq.read_table(generated / "shards")
    length = pyramid.offsets[pyramid.default_draft_steps]
    assert table["index"].to_pylist() == list(range(11))
    assert table["tokens"].to_pylist() == [tokens[:length] for tokens in images["tokens"].to_pylist()]
    assert table["label"].to_pylist() == images["label"].to_pylist()
    assert main(["verify", str(drafts)]) == 0


def test_draft_and_refine_give_the_bytes_of_generate(tiny_models, drafts, generated, tmp_path):
    more = ["--format", "parquet", "--keep-tokens", "--refiners", "2"]
    assert refine(tiny_models, drafts, tmp_path / "out", *more) == 0
    assert digests(tmp_path / "out") == digests(generated)
    table = pq.read_table(tmp_path / "out/shards").to_pydict()
    own = [(3.0, 5, 7), (0.5, 7, 5), (1.5, 600, 7), (1.5, 3, 5)]  # gaps are the job's own values
    assert list(zip(table["cfg"], table["top_k"], table["seed"], strict=True)) == [own[i % 4] for i in range(11)]
    assert table["seed_index"] == [i if CELLS[i % 4][2] is None else 0 for i in range(11)]
    assert read_provenance(table["image"][1]["bytes"]).settings == {"cfg": 0.5, "top_k": 7, "seed_index": 1}
    assert "| cfg | of each row: column `cfg` |" in (tmp_path / "out/README.md").read_text()
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_drafts_can_be_refined_again_from_fewer_scales_and_otherwise(tiny_models, drafts, generated, tmp_path):
    more = ["--format", "parquet", "--keep-tokens", "--draft-steps", "1", "--cfg", "0.5"]
    assert refine(tiny_models, drafts, tmp_path / "out", *more) == 0
    ours, whole = pq.read_table(tmp_path / "out/shards"), pq.read_table(generated / "shards")
    assert [t[:1] for t in ours["tokens"].to_pylist()] == [t[:1] for t in whole["tokens"].to_pylist()]
    assert ours["tokens"].to_pylist() != whole["tokens"].to_pylist()
    told = read_provenance(ours["image"][0]["bytes"].as_py())
    assert (told.draft_steps, told.settings) == (1, {"top_k": 5, "seed_index": 0})
    assert "cfg" not in ours.column_names
    assert ours["drafted_cfg"].to_pylist() == whole["cfg"].to_pylist()


def test_kept_ids_decode_to_the_images_and_others_are_found(drafts, generated, tiny_models, monkeypatch, capsys):
    assert main(["verify", str(generated), "--decode", "5"]) == 0
    decoded = json.loads(capsys.readouterr().out)["decoded"]
    assert decoded == {"images": 5, "identical": 5, "mean": 0.0, "largest": 0.0}
    assert main(["verify", str(generated), "--decode", "1", "--vqvae", "embedded"]) == 2
    assert "--vqvae: expected the dataset's, sha256 " in capsys.readouterr().err
    assert main(["verify", str(drafts), "--decode", "1"]) == 2
    assert "expected a dataset of images, " in capsys.readouterr().err
    read = OwnDataset.read

    def with_ids_of_the_next_row(source: OwnDataset, block: int) -> PictureBlock:
        found = read(source, block)
        order = np.roll(np.arange(len(found)), 1)
        return replace(found, columns=found.columns.take(order))

    monkeypatch.setattr(OwnDataset, "read", with_ids_of_the_next_row)
    assert main(["verify", str(generated), "--decode", "11"]) == 1
    said = capsys.readouterr()
    assert "index 3: its token ids decode to another image: expected a mean difference of at most 4" in said.err
    assert json.loads(said.out)["decoded"]["identical"] < 11


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--draft-steps", "4"], "--draft-steps: expected 1 to 3, the drafted scales, got 4"),
        (["--draft-steps", "0"], "--draft-steps: expected 1 to 3, the drafted scales, got 0"),
        (["--feather", "0"], "--feather: expected drafts of edits (tandem draft-edits), got drafts of images"),
        (["--vqvae", "embedded"], "different vocabulary"),
        (["--refiner", "embedded"], "drafter and refiner of different"),
    ],
)
def test_what_does_not_fit_the_drafts_is_refused(tiny_models, drafts, tmp_path, capsys, more, message):
    assert refine(tiny_models, drafts, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_places_without_all_drafts_are_refused(tiny_models, drafts, generated, tmp_path, capsys):
    assert refine(tiny_models, tmp_path / "nothing", tmp_path / "out") == 2
    assert refine(tiny_models, generated, tmp_path / "out") == 2
    entry = drafts / "manifest/00001.json"
    kept = entry.read_bytes()
    entry.unlink()
    assert refine(tiny_models, drafts, tmp_path / "out") == 2
    entry.write_bytes(kept)
    said = capsys.readouterr().err
    for part in ("job.json is missing", "is not that of drafts", "1 of 3 shards of"):
        assert part in said
    assert not (tmp_path / "out").exists()


def test_damaged_drafts_end_the_run_in_one_line_or_are_left_out_or_are_repaired(
    tiny_models, rows, drafts, tmp_path, capsys
):
    mine = tmp_path / "drafts"
    shutil.copytree(drafts, mine)
    path = mine / "shards/00001.parquet"
    table = pq.read_table(path)
    tokens = [[60_000, *row[1:]] for row in table["tokens"].to_pylist()]
    column = pa.array(tokens, table["tokens"].type)
    pq.write_table(table.set_column(table.column_names.index("tokens"), "tokens", column), path)
    assert refine(tiny_models, mine, tmp_path / "out") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and errors[0].startswith(
        f"error: shard 1: read: drafts in {mine}: shards/00001.parquet: exp"
    )
    path.write_bytes(path.read_bytes()[:100])
    assert refine(tiny_models, mine, tmp_path / "out", "--max-failed-shards", "1") == 0
    assert '"failed_shards": {"1": "read: drafts in' in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out/shards").iterdir()) == ["00000.tar", "00002.tar"]
    assert main(["verify", str(mine), "--repair"]) == 0
    assert draft(tiny_models, rows, mine) == 0 and digests(mine) == digests(drafts)
    assert refine(tiny_models, mine, tmp_path / "out") == 0 and main(["verify", str(tmp_path / "out")]) == 0
