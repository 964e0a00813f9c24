"""Memory and work of training steps by count, against real steps and torch's own count; the paper's recipe."""

from dataclasses import replace

import pytest
import torch

from support.sources import ROOT
from support.tiny_models import tiny_var, tiny_vqvae
from tandem.config import VAR_PRESETS
from tandem.counting.costs import LiveBytes
from tandem.counting.roofline import short
from tandem.training.objectives import Objective, TokenBatch
from tandem.training.recipe import RECIPES
from tandem.training.train_costs import TrainingStep, activation_bytes, step_bytes, torch_flops
from tandem.training.train_tables import GPUS, ROWS, hours_table, working
from tandem_jobs.bench.bench_train import saved_bytes

D16, D30 = VAR_PRESETS["d16"], VAR_PRESETS["d30"]
TINY = TrainingStep(tiny_var(2, 0).config, rows=2, mixed=False)


@pytest.mark.parametrize("settings", [{}, {"draft_steps": 2}, {"mixed": True}], ids=str)
def test_counted_activations_are_what_autograd_keeps(settings):
    step = replace(TINY, **settings)
    student = tiny_var(2, 0).requires_grad_(True)
    batch = TokenBatch(torch.zeros(2, 30, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    objective = Objective(step.draft_steps, step.draft_steps is not None)
    with saved_bytes(student) as kept, torch.autocast("cpu", torch.bfloat16, enabled=step.mixed):
        _loss = objective(student, tiny_vqvae().quantize, batch)
        saved = sum(kept.values())
    counted = step_bytes(step)
    assert counted.activations + counted.copies == pytest.approx(saved, rel=0.02)


def test_counted_peaks_are_those_of_a_real_step():
    """With blocks computed again, too, and far fewer bytes then."""
    peaks = []
    for recompute in (False, True):
        student, batch = (
            tiny_var(6, 0).requires_grad_(True),
            TokenBatch(torch.zeros(2, 30).long(), torch.zeros(2).long()),
        )
        student.recompute, quantizer = recompute, tiny_vqvae().quantize
        for parameter in student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with LiveBytes() as live:
            Objective()(student, quantizer, batch)[0].backward()
        _, peak = activation_bytes(replace(TINY, student=student.config, recompute=recompute))
        assert peak == pytest.approx(live.peak, rel=0.02)
        peaks.append(peak)
    assert peaks[1] < peaks[0] / 2


@pytest.mark.parametrize(
    "settings", [{}, {"draft_steps": 2}, {"recompute": True}, {"student": replace(D16, depth=2, num_heads=16)}], ids=str
)
def test_work_is_what_torch_counts(settings):
    step = replace(TINY, **settings)
    assert step.flops == pytest.approx(torch_flops(step), rel=0.002)


def test_a_teacher_costs_a_forward_pass_and_a_guided_one_two_rows():
    alone, taught, guided = (
        TrainingStep(D16, **more).flops for more in ({}, {"teacher": D30}, {"teacher": D30, "guided": True})
    )
    forward = TrainingStep(D30).flops / 3
    assert taught - alone == pytest.approx(forward)
    assert guided - alone == pytest.approx(2 * forward, rel=0.01)


def test_fsdp_divides_all_but_what_it_gathers():
    step = TrainingStep(replace(TINY.student, depth=4), sharding="fsdp", gpus=4)
    whole, part = step_bytes(replace(step, sharding="ddp")), step_bytes(step)
    parameters = step.student.num_parameters
    assert (whole.weights, whole.gradients, whole.optimiser, whole.average) == tuple(
        4 * parameters * n for n in (1, 1, 2, 1)
    )
    for name in ("weights", "gradients", "optimiser", "average"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name) / 4, abs=8)
    assert part.copies < 2 * parameters * 2


def test_the_paper_s_recipe():
    assert RECIPES["drafter"].epochs(30) == 17.5 and RECIPES["refiner"].epochs(16) == 50
    assert RECIPES["drafter"].epochs(4) is None
    assert RECIPES["drafter"].lr(1024) == pytest.approx(4e-6) and RECIPES["refiner"].lr(256) == pytest.approx(1e-5)


def test_the_document_has_these_tables():
    """The hours whole, and of the counted memory one row without recomputing, as a count takes seconds."""
    text = (ROOT / "docs" / "GPU.md").read_text()
    assert hours_table() in text
    (cells,) = (line.split(" | ") for line in text.splitlines() if line.startswith("| d16 | 310 |"))
    counted = step_bytes(TrainingStep(D16, ROWS, sharding="fsdp", gpus=GPUS))
    expected = (counted.weights, counted.optimiser, counted.copies, working(counted), counted.total)
    assert [cells[i] for i in (2, 4, 6, 7, 9)] == [short(value / 1e9) for value in expected]
