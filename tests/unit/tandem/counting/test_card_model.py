"""Kernels counted without a card, and a model of the card fitted to the times of a run on one."""

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from tandem import fused
from tandem.counting import card_model
from tandem.counting.card_model import H100, MEASURED, KernelCounts, fit, h100_measurements, predicted_ms, stage_ms
from tandem.counting.launches import Launch, counted
from tandem.limits import pretend

META = torch.device("meta")
DOCS = Path(__file__).resolve().parents[4] / "docs"
# Draft and refine, milliseconds with fused kernels and a graph a scale: docs/runs/gpu/h100_2026-11-26/fused.jsonl
FUSED = {
    (8, 64): (187.3, 100.5),
    (8, 8): (38.23, 18.01),
    (8, 1): (22.92, 7.374),
    (None, 64): (485.1, 0.0),
}


def test_each_operator_is_a_kernel_with_its_work_and_its_bytes():
    x, layer = torch.empty(6, 8, device=META), nn.Linear(8, 4, device=META)
    with torch.inference_mode(), counted() as launches:
        y = layer(x).view(2, 3, 4).transpose(0, 1)  # views are no kernels
        y.add_(torch.zeros(4, device=META).expand(3, 2, 4))
    assert launches == [
        Launch("linear", "product", 2.0 * 6 * 8 * 4, 4.0 * (6 * 8 + 8 * 4 + 4 + 6 * 4), 6),
        Launch("zeros", "step", 0.0, 16.0),
        Launch("add_", "step", 0.0, 4.0 * 6 * 4 + 16),
    ]


def test_a_fused_kernel_is_one_and_moves_what_it_has_to():
    x, branch, gate = (torch.empty(shape, device=META) for shape in ((2, 3, 64), (2, 3, 64), (2, 64)))
    qkv, scale, kv = (torch.empty(shape, device=META) for shape in ((2, 3, 192), (4,), (2, 2, 4, 100, 16)))
    with torch.inference_mode(), counted() as launches:
        fused.norm_modulated(x, branch, gate, gate, gate)
        fused.place_heads(qkv, scale, 3, kv, 7)
    assert [(one.name, one.kind) for one in launches] == [("gated_norm", "fused"), ("split_heads", "fused")]
    assert launches[0].bytes == 4 * (4 * 2 * 3 * 64 + 2 * 64)  # two read, two written, and one vector a row
    assert launches[1].bytes == 4 * 2 * 3 * (192 + 64 + 128)  # not the cache, of which three tokens are written


def test_attention_counts_as_one_kernel_on_a_card():
    q, k = torch.empty(2, 4, 3, 16, device=META), torch.empty(2, 4, 9, 16, device=META)
    with pretend(torch.device("cuda")), counted() as launches:
        from tandem.attention import attend_by_scale

        attend_by_scale(q, k, k, [3])
    assert launches == [Launch("attention", "attention", 4.0 * 2 * 4 * 3 * 9 * 16, 4.0 * (2 * 384 + 2 * 1152))]


def test_a_product_with_few_rows_is_far_from_the_peak_and_a_small_step_takes_a_launch():
    many, few, step = (
        H100.kernels_ms(KernelCounts([Launch("", kind, flops, moved, rows)]))
        for kind, flops, moved, rows in (("product", 1e12, 0, 10**6), ("product", 1e12, 0, 255), ("step", 0, 10, 0))
    )
    assert few / many == pytest.approx(2, rel=0.01)
    assert step == pytest.approx(H100.launch_us * 1e-3, rel=0.01)


@pytest.mark.slow
def test_the_model_of_the_card_fitted_on_half_of_the_scales_predicts_the_others_and_the_fused_kernels():
    seen = h100_measurements(DOCS / "runs" / "gpu")
    model = fit(MEASURED, seen[::2])
    away = [abs(predicted_ms(model, one) / one.ms - 1) for one in seen]
    assert len(seen) == 24 and max(away[1::2]) < 0.1 and max(away) < 0.15
    assert max(abs(predicted_ms(model, one) / predicted_ms(H100, one) - 1) for one in seen) < 0.01
    for (draft_steps, batch), measured in FUSED.items():
        predicted = stage_ms(H100, draft_steps, batch, fused=True, whole=False)
        assert sum(predicted) == pytest.approx(sum(measured), rel=0.1), (draft_steps, batch)


@pytest.mark.slow
def test_the_document_has_the_predictions_and_the_counts_are_what_was_aimed_at():
    document = (DOCS / "GPU.md").read_text()
    assert all(card_model.speed_row(8, batch) in document for batch in (64, 8, 1))
    before, after = card_model.counts(False), card_model.counts(True)
    assert after["draft"][0] < 2500 < before["draft"][0] / 3
    for stage in ("draft", "refine"):
        assert after[stage][1] < before[stage][1] / 3 + 0.5
