"""`tandem bench decode` from the command line, with tiny models and a small multiplication for the peak."""

import json
from itertools import cycle
from pathlib import Path

import pytest
import torch

from tandem.counting.roofline import PAPER_SPEED
from tandem_jobs.bench import decode_timing
from tandem_jobs.bench.decode_report import PAPER_MEMORY
from tandem_jobs.cli import main

KEYS = {
    "images_per_s",
    "gemm_share",
    "gemm_share_of_moment",
    "decode_gemm_share",
    "gemm_peak_gflops",
    "resident_bytes",
    "kv_bytes",
    "activation_bytes",
    "weight_bytes",
}
PUBLISHED = ("--drafter", "d30", "--refiner", "d16", "--vqvae", "vae_ch160v4096z32", "--random-weights")

SHORT = ("--repeats", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(decode_timing, "PEAK_SHAPE", (64, 64, 64))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bench(tiny_models, capsys):
    def run(*flags: str) -> tuple[dict, str]:
        models = [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", tiny_models[role])]
        assert main(["bench", "decode", *models, "--batches", "2,4", *SHORT, *flags]) == 0
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]), said.err

    return run


def test_one_json_line_has_every_run_and_plain_var(bench, tmp_path: Path):
    result, said = bench("--draft-steps", "2,3", "--out", str(tmp_path / "out"))
    assert set(result) >= KEYS
    cells = [(run["draft_steps"], run["batch"]) for run in result["runs"]]
    assert cells == [(2, 2), (3, 2), (2, 4), (3, 4), (None, 2), (None, 4)]
    first, plain = result["runs"][0], result["runs"][4]
    assert plain["speed_up"] == 1.0
    assert first["speed_up"] == pytest.approx(first["images_per_s"] / plain["images_per_s"], abs=2e-3)
    assert first["refine_s"] > 0.0 == plain["refine_s"]
    for run in result["runs"]:
        assert len(run["scale_s"]) == 4
        assert sum(run["scale_s"]) == pytest.approx(run["draft_s"] + run["refine_s"], rel=0.3, abs=2e-3)
    assert {name: first[name] for name in ("images_per_s", "kv_bytes", "weight_bytes")} == {
        name: result[name] for name in ("images_per_s", "kv_bytes", "weight_bytes")
    }
    assert json.loads((tmp_path / "out" / "decode.json").read_text()) == result
    assert (tmp_path / "out" / "decode.png").read_bytes().startswith(b"\x89PNG")
    assert "plain VAR, batch 4, seconds a scale:" in said
    assert "RssAnon +" in said


def test_long_scales_are_measured_against_the_moment(bench, monkeypatch):
    """Each of them has a rate behind it: here the machine is half as fast from the second scale on."""
    rates = cycle([4e9, *[2e9] * 4, 4e9])  # of each run: before it, behind its four scales, behind the decoder
    monkeypatch.setattr(decode_timing, "LONG_SCALE_S", 0.0)
    monkeypatch.setattr(decode_timing.Bench, "gemm_rate", lambda self, repeats: next(rates))
    result, _ = bench("--no-plain-var", "--draft-steps", "2")
    assert [1.3 < run["gemm_share_of_moment"] / run["gemm_share"] < 2.0 for run in result["runs"]] == [True, True]


def test_preparation_of_the_models_is_reported(bench):
    plain, _ = bench("--no-plain-var")
    folded, _ = bench("--no-plain-var", "--fold-adaln")
    assert (plain["fold_adaln"], folded["fold_adaln"]) == (False, True)
    assert folded["weight_bytes"] < plain["weight_bytes"]
    assert folded["table_bytes"] > 0
    assert "table_bytes" not in plain
    assert [run["draft_steps"] for run in plain["runs"]] == [3, 3]


def test_table_1_is_printed_next_to_the_runs(bench):
    _, said = bench("--paper-table", "1", "--draft-steps", "3")
    assert "Table 1; the paper's on an L20" in said
    assert str(PAPER_SPEED[None][0]) in said


def test_table_3_is_counted_without_running_anything(capsys):
    assert main(["bench", "decode", *PUBLISHED, "--paper-table", "3"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["method"], row["batch"]) for row in rows] == [(m, b) for b in PAPER_MEMORY for m in ("VAR", "CoDe")]
    assert all(row["share"] <= 0.5 for row in rows if row["share"] is not None)
    assert [row["batch"] for row in rows if row["paper_mib"] is None] == [128]


def test_table_3_is_about_pyramids_that_have_its_n(tiny_models, capsys):
    models = [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", tiny_models[role])]
    assert main(["bench", "decode", "--paper-table", "3", *models]) == 2
    assert "expected 1 to 3" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(["bench", "decode", "--out", str(tmp_path / "out")]) == 2
    assert "--out: expected a folder, got the file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_draft_step_that_the_model_does_not_have_is_refused(capsys):
    assert main(["bench", "decode", "--draft-steps", "7"]) == 2
    assert "expected 1 to 6" in capsys.readouterr().err
