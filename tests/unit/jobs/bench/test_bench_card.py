"""The check of a card, with models of a few layers on the CPU; the card's own answers are in docs/GPU.md."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from tandem.counting.roofline import CARDS, DRAFTER, REFINER, VQVAE_PRESET, images_per_s
from tandem.errors import InputError, JobError
from tandem.fp8 import quantise
from tandem_jobs.bench import bench_card, card_generate, gpu_rates
from tandem_jobs.bench.bench_card import BenchCardSpec, CardCheck
from tandem_jobs.bench.gpu_models import SIZES, GpuModels

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models() -> GpuModels:
    return GpuModels(SIZES["tiny"], CPU)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(gpu_rates, "COPIED", {False: 1 << 12})


def test_every_section_says_what_it_found(tmp_path, capsys):
    sections = ("environment", "rates", "attention", "identity", "speed", "memory", "halving")
    found = bench_card.run(BenchCardSpec(size="tiny", only=sections, repeats=1, out=tmp_path / "card"))
    assert tuple(found) == sections
    assert found == json.loads((tmp_path / "card" / "card.json").read_text())
    assert found == json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = found["speed"]["rows"]
    assert [(row["way"], row["draft_steps"], row["batch"]) for row in rows[:4]] == [
        ("graphs", 2, 2),
        ("graphs", 2, 1),
        ("graphs", 1, 2),
        ("graphs", 1, 1),
    ]
    assert {row["way"] for row in rows} == {"plain", "fused", "graphs", "fp8"}
    assert all(row["images_per_s"] > 0 and row["roofline_images_per_s"] > 0 for row in rows)
    assert all(
        found["identity"][name] == 1
        for name in ("plain_again", "graphs_company", "graphs_as_fused", "graphs_of_mixed_rows", "fp8_again")
    )


def test_a_card_that_gives_other_ids_is_an_error_and_the_rest_runs_all_the_same(monkeypatch, capsys):
    def differ(models: GpuModels) -> dict[str, object]:
        return {"plain_again": 0.5, "wrong": ["plain_again: expected the same ids, got 0.5 of them"]}

    monkeypatch.setattr(bench_card.gpu_checks, "identity", differ)
    monkeypatch.setattr(bench_card.gpu_rates, "attention", lambda models: 1 / 0)
    with pytest.raises(JobError, match="2 checks failed, the first: attention: ZeroDivisionError"):
        bench_card.run(BenchCardSpec(size="tiny", only=("attention", "identity", "environment")))
    said = capsys.readouterr()
    assert "identity: plain_again: expected the same ids" in said.err
    assert json.loads(said.out.splitlines()[-1])["environment"]["torch"] == torch.__version__


def test_fp8_is_used_in_its_way_alone(models, monkeypatch):
    monkeypatch.setattr("tandem.linear.LEAST_ROWS", 2)
    rows = []
    monkeypatch.setattr("tandem.linear.quantise", lambda x_NI: rows.append(len(x_NI)) or quantise(x_NI))
    for way, layers in (("graphs", 0), ("fp8", 4 * 3), ("plain", 0)):
        rows.clear()
        with models.way(way):
            models.ids(models.batch(2))
        assert len(rows) == 2 * layers  # at two scales each


def test_a_card_without_fp8_is_measured_without_it(monkeypatch):
    monkeypatch.setattr("tandem_jobs.bench.gpu_models.reason_against_fp8", lambda device: "fp8: expected another GPU")
    models = GpuModels(SIZES["tiny"], CPU)
    assert models.ways == ("plain", "fused", "graphs")
    monkeypatch.setattr(gpu_rates, "stage_ms", lambda *given: {})
    assert {row["way"] for row in gpu_rates.speed(models, CARDS[0], 1, lambda: 99.0)} == set(models.ways)


def test_a_section_that_fails_says_where_and_names_no_folder_of_the_machine(monkeypatch):
    def fails(models: GpuModels) -> None:
        raise AttributeError("no cache")

    monkeypatch.setattr("tandem_jobs.bench.gpu_checks.identity", fails)
    check = CardCheck(BenchCardSpec(size="tiny", only=("identity",)))
    check.run()
    found = check.found["identity"]
    assert found["wrong"] == ["AttributeError: no cache"]
    assert found["trace"][-1].startswith("test_bench_card.py:")
    assert "/" not in str(found["trace"])


def test_without_a_gpu_the_published_size_is_refused(monkeypatch):
    monkeypatch.setattr(bench_card, "pick_device", lambda: CPU)
    with pytest.raises(InputError, match="expected a GPU, found none"):
        CardCheck(BenchCardSpec())


def test_no_section_begins_when_the_time_is_over():
    found = bench_card.run(BenchCardSpec(size="tiny", only=("identity",), budget_s=1e-9))
    assert found["identity"]["left_out"].endswith("(--budget-s)")


def test_a_generate_that_takes_longer_than_the_budget_is_left_out_and_not_wrong(monkeypatch):
    def run(command: list[str], timeout: float, **more: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(card_generate.subprocess, "run", run)
    found = bench_card.run(BenchCardSpec(size="tiny", only=("generate",), budget_s=100))
    assert found["generate"]["left_out"] == "not finished after 180 s (--budget-s)"


def test_the_roofline_is_that_of_the_rates_that_were_measured():
    size = SIZES["published"]
    assert (size.drafter, size.refiner, size.vqvae) == (DRAFTER, REFINER, VQVAE_PRESET)
    rates = {"a_tflops": 100.0, "square_tflops": CARDS[3].tflops, "b_fp8_tflops": 9e3, "copy_gb_per_s": CARDS[3].gbps}
    card = gpu_rates.measured_card("own", rates, 80)
    models = object.__new__(GpuModels)
    models.size = size
    seconds = sum(gpu_rates.roofline_s(models, card, 8, 64))
    assert 64 / seconds == pytest.approx(images_per_s(8, 64, CARDS[3], with_decode=True))
