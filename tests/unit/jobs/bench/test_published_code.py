"""The published code as a baseline, from a checkout."""

import json
import sys
from pathlib import Path

import pytest
import torch

from support.published_checkout import write_checkout
from tandem.config import VAR_PRESETS, VQVAE_PRESET
from tandem.errors import InputError
from tandem_jobs.bench import decode_timing
from tandem_jobs.bench.gpu_models import SIZES, GpuModels
from tandem_jobs.bench.published_code import PublishedCode, check_shapes, compare
from tandem_jobs.cli import main

CPU = torch.device("cpu")


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    monkeypatch.delitem(sys.modules, "models", raising=False)
    return write_checkout(tmp_path)


def test_the_published_code_runs_from_a_checkout_and_leaves_nothing_behind(checkout):
    size = SIZES["tiny"]
    reset = torch.nn.Linear.reset_parameters
    published = PublishedCode(checkout, size.drafter, size.refiner, size.vqvae, CPU)
    assert torch.nn.Linear.reset_parameters is reset
    assert published.drafter.in_features == size.drafter.depth
    labels_B = torch.zeros(2, dtype=torch.int64)
    assert published.make(labels_B, 2) == (2, "f_hat", 2, 4)
    assert published.make(labels_B, None) == ("alone", 2, 600)
    row = compare(published, GpuModels(size, CPU), 1, 2, repeats=1)
    assert row["ratio"] == pytest.approx(row["images_per_s"] / row["published_images_per_s"])


def test_a_folder_without_the_published_code_is_refused_before_models_are_loaded(tmp_path, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    assert main(["bench", "decode", "--drafter", "d30", "--random-weights", "--published", str(tmp_path)]) == 2
    assert "expected a checkout of the published CoDe code, " in (said := capsys.readouterr().err)
    assert "has no models/var.py" in said
    assert "loaded in" not in said


def test_models_that_the_published_code_cannot_have_are_refused(checkout, capsys):
    assert main(["bench", "decode", "--published", str(checkout)]) == 2
    assert "expected a vqvae with the published channel_mult (1, 1, 2, 2, 4), got (1, " in capsys.readouterr().err
    d30, d16, d36 = (VAR_PRESETS[name] for name in ("d30", "d16", "d36"))
    check_shapes(d30, d16, VQVAE_PRESET)
    with pytest.raises(InputError, match="expected a drafter with the published shared_adaln False, got True"):
        check_shapes(d36, d16, VQVAE_PRESET)


def test_what_was_measured_before_the_published_code_fails_stays(checkout, tiny_models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decode_timing, "PEAK_SHAPE", (64, 64, 64))
    monkeypatch.setattr(decode_timing, "check_shapes", lambda *configs: None)
    (checkout / "models" / "__init__.py").write_text("")
    models = [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", tiny_models[role])]
    flags = ["--batches", "1", "--repeats", "1", "--threads", "1", "--no-plain-var", "--out", str(tmp_path / "out")]
    assert main(["bench", "decode", *models, *flags, "--published", str(checkout)]) == 1
    said = capsys.readouterr()
    assert "error: not all could be measured: ImportError: cannot import name" in said.err
    found = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert found == json.loads(said.out.splitlines()[-1])
    assert len(found["runs"]) == 1 and found["published"][0]["error"].startswith("ImportError")


def test_both_are_timed_in_turn_and_never_loaded_at_once(checkout, tiny_models, capsys, monkeypatch):
    events = []
    made, loaded = PublishedCode.make, decode_timing.Bench.load
    monkeypatch.setattr(decode_timing, "PEAK_SHAPE", (64, 64, 64))

    def make(self, labels_B, draft_steps):
        events.append(("published", len(labels_B)))
        return made(self, labels_B, draft_steps)

    def load(self):
        events.append(("loaded", 0))
        loaded(self)

    def unload(self):
        events.append(("freed", 0))
        unloaded(self)

    unloaded = decode_timing.Bench.unload
    monkeypatch.setattr(decode_timing, "check_shapes", lambda *configs: None)  # the checkout computes nothing
    monkeypatch.setattr(PublishedCode, "make", make)
    monkeypatch.setattr(decode_timing.Bench, "load", load)
    monkeypatch.setattr(decode_timing.Bench, "unload", unload)
    models = [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", tiny_models[role])]
    flags = ["--batches", "2", "--draft-steps", "2", "--repeats", "2", "--threads", "1", "--refiner-cfg", "0"]
    assert main(["bench", "decode", *models, *flags, "--published", str(checkout)]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["published"]
    assert [(row["draft_steps"], row["batch"]) for row in rows] == [(2, 2), (None, 2)]
    for row in rows:
        assert row["times_as_fast"]["low"] <= row["times_as_fast"]["value"] <= row["times_as_fast"]["high"]
    assert rows[0]["work_ratio"] > 1.0 == rows[1]["work_ratio"]  # ours leaves out the refiner's second rows
    one_round = [("published", 1), ("published", 2), ("published", 2)]
    ours = [("loaded", 0), ("freed", 0)]
    assert events == [("loaded", 0), ("freed", 0), *ours, *one_round, *one_round, *ours, ("loaded", 0)]
