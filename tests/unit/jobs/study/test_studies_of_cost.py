"""`tandem study memory` and `latency`, with tiny models."""

import json

import pytest
import torch

from tandem.counting.costs import var_bytes, vqvae_bytes
from tandem_jobs.bench import decode_timing
from tandem_jobs.bench.decode_report import MIB
from tandem_jobs.bench.decode_timing import Setting
from tandem_jobs.cli import main
from tandem_jobs.study.latency import paper_speed
from tandem_jobs.study.memory_use import counted_row

PUBLISHED = ("--drafter", "d30", "--refiner", "d16", "--vqvae", "vae_ch160v4096z32", "--random-weights")


@pytest.fixture
def study(tiny_models, tmp_path, capsys):
    threads = torch.get_num_threads()
    models = [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", tiny_models[role])]

    def run(name: str, *flags: str) -> tuple[dict, str]:
        """Its JSON, and its page; all files are there and agree."""
        out = tmp_path / "out"
        assert main(["study", name, *models, "--threads", "1", "--out", str(out), *flags]) == 0
        values = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert json.loads((out / f"{name}.json").read_text()) == values
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        return values, (out / f"{name}.md").read_text()

    yield run
    torch.set_num_threads(threads)


def test_memory_of_the_published_pair_is_counted_without_its_weights(tmp_path, capsys, monkeypatch):
    def load(*args):
        raise AssertionError("nothing is loaded")

    monkeypatch.setattr(decode_timing, "load_transformer", load)
    monkeypatch.setattr(decode_timing, "load_tokenizer", load)
    assert main(["study", "memory", *PUBLISHED, "--batches", "64", "--out", str(tmp_path)]) == 0
    plain, code = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (plain["setting"], code["setting"]) == ("plain VAR", "CoDe N = 6")
    assert plain["paper_mib"] == {"running": 2420, "cache": 28707, "weights": 8089, "total": 39228}
    for row in (plain, code):
        parts = ("weight_bytes", "kv_bytes", "activation_bytes")
        assert row["total_bytes"] == sum(row[part] for part in parts) <= row["total_with_decode_bytes"]
        assert row["weight_bytes"] / MIB == pytest.approx(row["paper_mib"]["weights"] / 2, rel=0.01)
        assert row["activation_bytes"] / MIB < row["paper_mib"]["running"]
    assert code["total_bytes"] / plain["total_bytes"] == pytest.approx(19943 / 39228, abs=0.01)
    page = (tmp_path / "memory.md").read_text()
    assert "(28707)" in page and "needs 0.51 of plain VAR's bytes" in page


def test_measured_memory_is_counted_for_this_machine(study):
    values, page = study("memory", "--batches", "2,3", "--measure")
    assert (values["counted_for"], values["dtype"], values["draft_steps"]) == ("CPU", "float32", 3)
    assert [row["batch"] for row in values["rows"]] == [2, 2, 3, 3]
    assert all(row["resident_bytes"] >= values["loaded_bytes"] > MIB for row in values["rows"])
    assert "| resident |" in page
    assert all(row["paper_mib"] is None for row in values["rows"])


def test_a_setting_is_counted_by_the_stage_that_needs_the_most(tiny_models):
    spec = decode_timing.BenchDecodeSpec(**tiny_models, paper_table="3", dtype="float32")
    bench, device = decode_timing.Bench(spec), torch.device("cuda")
    row = counted_row(bench, Setting(2, 4), device)
    rest = (torch.float32, device, bench.preparation, bench.sampling)
    draft = var_bytes(bench.configs["draft"], 4, 0, 2, *rest)
    refine = var_bytes(bench.configs["refine"], 4, 2, 4, *rest)
    decode = vqvae_bytes(bench.vqvae_config, 4, torch.float32, device)
    assert row["weight_bytes"] == draft.weights + refine.weights + decode.weights
    working = max(draft.cache + draft.activations, refine.cache + refine.activations)
    assert row["kv_bytes"] + row["activation_bytes"] == working
    assert row["total_with_decode_bytes"] == row["weight_bytes"] + max(working, decode.activations)


def test_latency_has_every_batch_and_both_models_at_every_scale(study, tmp_path):
    values, page = study("latency", "--batches", "2,1", "--draft-steps", "3,2", "--repeats", "2")
    rows = values["rows"]
    assert [(row["draft_steps"], row["batch"]) for row in rows] == [(n, b) for b in (1, 2) for n in (None, 2, 3)]
    for row in rows:
        latency = row["latency_s"]
        assert 0 < latency["low"] <= latency["value"] <= latency["high"]
        assert row["decode_s"]["value"] > 0
    plain = rows[3]
    assert plain["speed_up"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert plain["refine_s"]["value"] == 0.0
    assert values["scale_s"]["batch"] == 2
    for role in ("drafter", "refiner"):
        assert len(values["scale_s"][role]) == 4
    sums = sum(one["low"] for one in values["scale_s"]["drafter"])
    assert sums <= plain["latency_s"]["high"] * 1.01
    assert page.count("| plain VAR |") == 2
    assert "Each scale at batch 2" in page


def test_the_papers_speed_is_that_with_as_many_scales_left():
    assert paper_speed(None, 7) == (pytest.approx(3.61, abs=0.01), 1.0)
    assert paper_speed(5, 7) == (pytest.approx(2.11, abs=0.01), 1.7)  # N = 8 of 10
    assert paper_speed(6, 10) == (pytest.approx(1.27, abs=0.01), 2.9)
    assert paper_speed(2, 7) is None


@pytest.mark.parametrize("below", ["", "studies"])
def test_a_file_in_the_place_of_the_folder_is_refused_before_the_work(tmp_path, capsys, below):
    (tmp_path / "mine").write_text("mine")
    assert main(["study", "memory", "--out", str(tmp_path / "mine" / below)]) == 2
    said = capsys.readouterr().err
    assert f"--out: expected a folder, got the file {tmp_path / 'mine'}" in said and "MiB" not in said
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_small_batch_saves_nothing_and_the_page_says_so(study):
    values, _ = study("memory", "--batches", "1,1")
    assert [row["batch"] for row in values["rows"]] == [1, 1]
    assert values["rows"][1]["total_bytes"] > values["rows"][0]["total_bytes"]
    assert values["findings"][1].startswith("CoDe saves nothing here")
