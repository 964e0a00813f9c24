"""The measurements of `tandem bench card`: peak rates of a card, and its speed of decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from tandem.counting.roofline import Card, decode_costs, scale_costs, stage_roofline
from tandem.graphs import FIRST_CAPTURED
from tandem_jobs.bench.gpu_models import GRAPHED, WAYS, GpuModels, Way

ATTENTION = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
COPIED = {True: 1 << 30, False: 1 << 22}  # bytes, on a GPU or on a CPU


def peak_rates(models: GpuModels) -> dict[str, Any]:
    """TFLOP/s of products of typical sizes, in bfloat16 and FP8, and GB/s of a copy."""
    size, found = models.size, dict[str, Any]()
    width, rows = size.drafter.width, 2 * size.batches[0] * size.drafter.patch_nums[size.draft_steps - 1] ** 2
    shapes = {"mlp_up": (rows, width, 4 * width), "mlp_down": (rows, 4 * width, width)}
    if models.on_gpu:
        shapes["square"] = 8192, 8192, 8192
    for name, (m, k, n) in shapes.items():
        x_MK, w_NK = (torch.randn(count, k, device=models.device).to(models.dtype) for count in (m, n))
        flops = 2e-9 * m * k * n
        found[f"{name}_tflops"] = flops / models.kernel_ms(partial(F.linear, x_MK, w_NK))
        if models.on_gpu:
            found[f"{name}_fp8_tflops"] = attempt(partial(fp8_tflops, models, x_MK, w_NK))
    copied = torch.empty(COPIED[models.on_gpu], dtype=torch.uint8, device=models.device)
    found["copy_gb_per_s"] = 2e-6 * copied.numel() / models.kernel_ms(copied.clone)
    return found


def fp8_tflops(models: GpuModels, x_MK: torch.Tensor, w_NK: torch.Tensor) -> float:
    """The rate of a product in FP8 with a scale a row."""
    x, w = x_MK.to(torch.float8_e4m3fn), w_NK.to(torch.float8_e4m3fn)
    scale_x, scale_w = (torch.ones(shape, device=models.device) for shape in ((len(x), 1), (1, len(w))))
    product = partial(torch._scaled_mm, x, w.t(), scale_a=scale_x, scale_b=scale_w, out_dtype=torch.bfloat16)
    return 2e-9 * len(x) * w.numel() / models.kernel_ms(product)


def measured_card(name: str, found: dict[str, Any], gigabytes: float) -> Card:
    """The card for a roofline, with the measured rates of products and copies."""
    tflops = max(value for key, value in found.items() if key.endswith("_tflops") and "fp8" not in key)
    return Card(name, tflops, found["copy_gb_per_s"], gigabytes, "measured")


def attention(models: GpuModels) -> dict[str, Any]:
    """The attention kernel that torch chooses at the last drafted scale, and its milliseconds."""
    size = models.size
    config, n = size.drafter, size.draft_steps
    rows, tokens, seen = 2 * size.batches[0], config.patch_nums[n - 1] ** 2, config.pyramid.offsets[n]
    shape = rows, tokens, config.heads, config.head_dim
    q_RHlc = torch.randn(shape, device=models.device).to(models.dtype).transpose(1, 2)
    k_RHLc, v_RHLc = (
        torch.randn(rows, config.heads, seen, config.head_dim, device=models.device).to(models.dtype) for _ in range(2)
    )
    ms = models.kernel_ms(lambda: F.scaled_dot_product_attention(q_RHlc, k_RHLc, v_RHLc, scale=1.0))
    chosen = torch._fused_sdp_choice(q_RHlc, k_RHLc, v_RHLc, scale=1.0)
    return {"kernel": ATTENTION.get(chosen, str(chosen)), "ms": ms}


def speed(models: GpuModels, card: Card, repeats: int, left: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Milliseconds of stages and images a second to pixels, one row per setting and way, the most important first, with
    the roofline of the measured bfloat16 rates. Ends early when `left` seconds are few."""
    size = models.size
    cells: list[tuple[Way, int | None, int]] = [("graphs", size.draft_steps, batch) for batch in size.batches]
    cells += [("graphs", n, batch) for n in (*size.others, None) for batch in size.batches]
    if "fp8" in models.ways:
        cells += [("fp8", size.draft_steps, batch) for batch in size.batches]
        cells += [("fp8", n, size.batches[0]) for n in (*size.others, None)]
    cells += [(way, size.draft_steps, batch) for way in WAYS[:2] for batch in size.batches]
    for way, draft_steps, batch in cells:
        if left() < 15:
            return
        yield {
            "way": way,
            "draft_steps": draft_steps,
            "batch": batch,
            **stage_ms(models, way, draft_steps, batch, repeats),
            "roofline_images_per_s": batch / sum(roofline_s(models, card, draft_steps, batch)),
        }


def stage_ms(models: GpuModels, way: Way, draft_steps: int | None, size: int, repeats: int) -> dict[str, float]:
    """Measurements of one batch in one way."""
    batch, warm = models.batch(size), FIRST_CAPTURED if way in GRAPHED else 1
    with models.way(way):
        if draft_steps is None:
            all_ms = models.median_ms(lambda: models.alone(batch), repeats, warm)
            return {"all_ms": all_ms, "images_per_s": 1e3 * size / all_ms}
        prefix = models.draft(batch, draft_steps)
        ids_BL = models.refine(batch, prefix)
        found = {
            "draft_ms": models.median_ms(lambda: models.draft(batch, draft_steps), repeats, warm),
            "refine_ms": models.median_ms(lambda: models.refine(batch, prefix), repeats, warm),
            "decode_ms": models.median_ms(lambda: models.decode(ids_BL), repeats, warm),
        }
    all_ms = sum(found.values())
    return found | {"all_ms": all_ms, "images_per_s": 1e3 * size / all_ms}


def roofline_s(models: GpuModels, card: Card, draft_steps: int | None, batch: int) -> list[float]:
    """Least seconds of the stages of a batch, by the roofline."""
    size, scales = models.size, models.size.drafter.pyramid.num_scales
    work = [scale_costs(size.drafter, batch, 0, draft_steps or scales), decode_costs(size.vqvae, batch)]
    if draft_steps:
        work.append(scale_costs(size.refiner, batch, draft_steps, scales))
    return [stage_roofline(stage, card) for stage in work]


def attempt(work: Callable[[], float]) -> float | str:
    """The result of a piece of work, or the reason why this card cannot do it."""
    try:
        return work()
    except RuntimeError as error:
        return f"{type(error).__name__}: {' '.join(str(error).split()):.100}"
