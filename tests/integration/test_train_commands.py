"""From a folder of pictures to images of a fine-tuned pair, by commands; and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file

from tandem.checkpoints.weights import open_checkpoint
from tandem_jobs.cli import main
from tandem_workers.training.token_files import open_tokens, read_all

pytestmark = pytest.mark.usefixtures("ray_cluster")

SHAPE = ("--base-channels", "32", "--stem-patch", "2", "--patch-nums", "1,2,4", "--vocab-size", "32")
SHORT = ("--threads", "1", "--warmup", "2", "--log-every", "2", "--checkpoint-every", "4")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of plain 16 px pictures."""
    root = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("heldout", 2)):
        for name in ("zebra", "ant", "bee"):
            (root / "pictures" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((16, 16, 3), 255, np.uint8)
                pixels[4:12, 4:12] = rng.integers(0, 200, 3)
                Image.fromarray(pixels).save(root / "pictures" / split / name / f"{number}.png")
    (root / "pictures" / "pictures.json").write_text(json.dumps({"classes": ["zebra", "ant", "bee"]}))
    return root


def command(*args: object) -> list[str]:
    return [str(arg) for arg in args]


def ran(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    """The JSON line of a command that went well."""
    capsys.readouterr()
    code = main(command(*args))
    found = capsys.readouterr()
    assert code == 0, found.err
    return json.loads(found.out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """The error of a command that took its input for wrong."""
    capsys.readouterr()
    assert main(args) == 2
    return capsys.readouterr().err


def drafter_run(root: Path) -> list[str]:
    """A short training of a transformer, scored on what it learns."""
    tokens, vqvae = root / "tokens", root / "runs/vqvae/vqvae.safetensors"
    data = ("--tokens", tokens, "--heldout", tokens, "--vqvae", vqvae, "--balance", 0.5, "--batch", 4)
    length = ("--depth", 2, "--steps", 8, "--samples-every", 4)
    return command("train", "var", *data, *length, *SHORT, "--out", root / "runs/drafter")


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    """ROOT/runs: a tokenizer, its tokens and a transformer."""
    pictures, vqvae = root / "pictures", root / "runs/vqvae"
    views = ("--views", 2, "--augment", "affine")
    length = ("--steps", 6, "--batch", 4, "--continuous-steps", 2)
    for run in (
        command("train", "vqvae", "--data", pictures, "--out", vqvae, *length, *SHAPE, *SHORT),
        command(
            *("tokenize", pictures / "train", "--vqvae", vqvae / "vqvae.safetensors", "--out", root / "tokens", *views)
        ),
        drafter_run(root),
    ):
        assert main(run) == 0
    return root / "runs"


def finetune(trained: Path, role: str, *args: object) -> list[str]:
    """A command that fine-tunes the trained transformer."""
    tokens, vqvae = trained.parent / "tokens", trained / "vqvae/vqvae.safetensors"
    models = ("--vqvae", vqvae, "--init", trained / "drafter/var.safetensors")
    return command("finetune", role, "--tokens", tokens, *models, "--batch", 4, *SHORT, *args)


def test_a_run_leaves_weights_log_and_sheets(trained):
    folder = trained / "drafter"
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [2, 4, 6, 8]
    assert [record["step"] for record in records if "heldout_loss_scale_3" in record] == [4, 8]
    assert sorted(path.name for path in (folder / "samples").iterdir())[-1] == "00000008.png"
    header = open_checkpoint(folder / "var.safetensors").header
    assert header["classes"] == ["zebra", "ant", "bee"]
    assert header["recipe"]["steps"] == 8 and header["recipe"]["balance"] == 0.5


def test_a_finished_run_is_exported_again_and_another_one_is_refused(trained, capsys):
    weights = trained / "drafter/var.safetensors"
    before = load_file(weights)
    weights.unlink()
    run = drafter_run(trained.parent)
    assert ran(capsys, *run, "--workers", 2, "--micro-batch", 1)["steps"] == 8  # which change no weights
    assert all((load_file(weights)[name] == value).all() for name, value in before.items())
    error = refused(capsys, [*run, "--lr", "1e-4"])
    assert "holds another training run. Fields that differ:\n  " in error and "peak_lr" in error


def test_distilled_models_make_images_with_their_own_n_and_without_guidance(trained, capsys, tmp_path):
    """Here both are one model, which saves a run."""
    teacher = ("--teacher", trained / "drafter/var.safetensors")
    tuned = ("--draft-steps", 1, "--distill-cfg", 3, "--steps", 4, "--out", tmp_path / "tuned")
    model = ran(capsys, *finetune(trained, "refiner", *tuned, *teacher))["file"]
    pair = ("--drafter", model, "--refiner", model, "--vqvae", trained / "vqvae/vqvae.safetensors")
    images = ("--classes", "all", "--per-class", 2, "--batch", 4, "--keep-tokens", "--format", "parquet")
    ran(capsys, "generate", *images, "--out", tmp_path / "images", *pair)
    decoding = json.loads((tmp_path / "images/job.json").read_text())["identity"]["decoding"]
    assert decoding["draft_steps"] == 1 and decoding["sampling"]["cfg"] == 0
    drawn = ("--kept-tokens", *pair[-2:], "--out", tmp_path / "drawn")
    assert ran(capsys, "tokenize", tmp_path / "images", *drawn)["pictures"] == 6
    kept = pq.read_table(sorted((tmp_path / "images/shards").glob("*.parquet"))[0])["tokens"].to_pylist()
    assert read_all(open_tokens(str(tmp_path / "drawn"))).ids[:, 0].tolist()[: len(kept)] == kept


@pytest.mark.parametrize(
    ("role", "args", "message"),
    [
        ("drafter", (), "--draft-steps or --distill-cfg"),
        ("drafter", ("--draft-steps", 3, "--steps", 1), "expected 1 to 2"),
        ("drafter", ("--draft-steps", 2, "--epochs", 1, "--steps", 1), "expected --steps or --epochs, got both"),
        ("drafter", ("--draft-steps", 2), "expected --epochs or --steps for a model of depth 2"),
        ("refiner", ("--draft-steps", 2, "--steps", 1, "--teacher", "nowhere.safetensors"), "found nothing"),
        ("refiner", ("--draft-steps", 2, "--steps", 1), "the teacher does not fit: vocab_size: expected 32"),
        ("refiner", ("--draft-steps", 2, "--steps", 1, "--vqvae", "embedded"), "the token set is of"),
    ],
)
def test_what_cannot_be_fine_tuned_is_one_line(trained, capsys, tmp_path, role, args, message):
    assert message in refused(capsys, finetune(trained, role, "--out", tmp_path / "out", *args))
    assert not (tmp_path / "out").exists()
