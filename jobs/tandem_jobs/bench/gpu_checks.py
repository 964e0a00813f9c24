"""The checks of `tandem bench card`: whether a GPU decodes correctly. Each returns its findings, and under `wrong` a
sentence for each failure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tandem.assembly import PLAIN, Preparation
from tandem.checkpoints.weights import load_var, load_vqvae
from tandem.counting.costs import var_bytes
from tandem.sampling import uniforms
from tandem.scales import Decode
from tandem.zoo import EMBEDDED_SAMPLING, weights_path
from tandem_jobs.bench.gpu_models import SAMPLING, DecodeInputs, GpuModels
from tandem_workers.stages.oom import Halving

IMAGES = 16
FLOAT32_SHARE = 0.99  # least share of equal ids: another order of additions may flip a rare draw, TF32 flips 5 in 100
COUNTED_WITHIN = 0.05  # largest relative error of counted bytes
SMALL_BYTES = 7 << 30  # memory limit for the out-of-memory check
TOO_LARGE = 256  # images that do not fit within it


def parity(models: GpuModels) -> dict[str, Any]:
    """Compare ids of the embedded models on the card and on the CPU, from the same random numbers."""
    expected = embedded_ids(torch.float32, torch.device("cpu"), PLAIN)
    found: dict[str, Any] = {}
    for name, dtype, preparation in (
        ("float32", torch.float32, PLAIN),
        ("float32_fused", torch.float32, Preparation(kernels="auto")),
        ("bfloat16", torch.bfloat16, PLAIN),
        *([("bfloat16_fp8", torch.bfloat16, Preparation(fp8=True, kernels="auto"))] if "fp8" in models.ways else []),
    ):
        found[name] = same(embedded_ids(dtype, models.device, preparation), expected)
    low = [name for name in ("float32", "float32_fused") if found[name] < FLOAT32_SHARE]
    return found | {"wrong": [f"{name}: expected {FLOAT32_SHARE} of the CPU's ids, got {found[name]}" for name in low]}


def embedded_ids(dtype: torch.dtype, device: torch.device, preparation: Preparation) -> Tensor:
    var = load_var(weights_path("drafter"), dtype, device, preparation=preparation)
    quantizer = load_vqvae(weights_path("vqvae"), torch.float32, device, var.config.patch_nums, preparation).quantize
    index, pyramid = np.arange(IMAGES), var.config.pyramid
    labels, noise = torch.from_numpy(index % var.config.num_classes), uniforms(7, index, pyramid.num_tokens)
    batch = DecodeInputs(labels.to(device), noise.to(device))
    stop, none_B0 = pyramid.num_scales, batch.uniforms_BL[:, :0]
    decode = Decode.of(var, quantizer, batch.labels_B, batch.uniforms_BL, none_B0, stop, EMBEDDED_SAMPLING)
    return decode.tokens().cpu()


def identity(models: GpuModels) -> dict[str, Any]:
    """Share of equal ids for each way: in a second run, in another batch, with and without graphs."""
    most = models.size.batches[0]
    one, two, half = models.batch(most), models.batch(most, first=500), most // 2
    mixed = DecodeInputs(
        *(torch.cat([getattr(one, n)[:half], getattr(two, n)[half:]]) for n in ("labels_B", "uniforms_BL"))
    )
    found: dict[str, Any] = {}
    first: dict[str, Tensor] = {}
    for way in models.ways:
        with models.way(way):
            first[way] = models.ids(one)
            for _ in range(2):  # the second run captures a graph, the third replays it
                again = models.ids(one)
            found[f"{way}_again"] = same(again, first[way])
            found[f"{way}_company"] = same(models.ids(mixed)[:half], first[way][:half])
    found["graphs_as_fused"] = same(first["graphs"], first["fused"])
    found["graphs_of_mixed_rows"] = mixed_rows(models, one)
    wrong = [f"{name}: expected the same ids, got {share} of them" for name, share in found.items() if share < 1]
    found["fused_as_plain"] = same(first["fused"], first["plain"])  # other rounding, other draws
    found |= {"fp8_as_graphs": same(first["fp8"], first["graphs"])} if "fp8" in first else {"fp8": models.without_fp8}
    return found | {"wrong": wrong}


def mixed_rows(models: GpuModels, batch: DecodeInputs) -> float:
    """Share of equal ids with and without graphs, for batches with two samplings. Two mixes alternate, so that the
    memory of a graph's first inputs has been reused."""
    ways, rows = (SAMPLING, replace(SAMPLING, top_k=50)), len(batch.labels_B)
    mixes = [[ways[2 * row // rows] for row in range(rows)], [ways[row % 2] for row in range(rows)]]
    with models.way("fused"):
        expected = [models.ids(batch, mix) for mix in mixes]
    with models.way("graphs"):
        return min(
            same(models.ids(batch, mix), ids) for _ in range(3) for mix, ids in zip(mixes, expected, strict=True)
        )


def memory(models: GpuModels) -> dict[str, Any]:
    """GB of a stage in addition to weights: counted, actual, and kept by torch with graphs."""
    size, most = models.size, models.size.batches[0]
    n, scales = size.draft_steps, size.drafter.pyramid.num_scales
    batch = models.batch(most)
    prefix = models.draft(batch, n)
    stages = {"draft": (size.drafter, 0, n), "refine": (size.refiner, n, scales)}
    found: dict[str, Any] = {}
    for name, (config, start, stop) in stages.items():
        counted = var_bytes(config, most, start, stop, models.dtype, models.device, PLAIN, SAMPLING)
        found[f"{name}_counted_gb"] = (counted.cache + counted.activations) / 1e9
        for way in ("plain", "graphs") if models.on_gpu else ():
            with models.way(way):
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
                for _ in range(3 if way == "graphs" else 1):
                    _ = models.draft(batch, n) if name == "draft" else models.refine(batch, prefix)
                if way == "plain":
                    found[f"{name}_taken_gb"] = (torch.cuda.max_memory_allocated() - before[0]) / 1e9
                else:
                    found[f"{name}_kept_by_graphs_gb"] = (torch.cuda.max_memory_reserved() - before[1]) / 1e9
    wrong = [
        f"{name}: {found[f'{name}_counted_gb']:.2f} GB are counted, {taken:.2f} GB were taken"
        for name in stages
        if (taken := found.get(f"{name}_taken_gb")) is not None
        and abs(found[f"{name}_counted_gb"] / taken - 1) > COUNTED_WITHIN
    ]
    return found | {"wrong": wrong}


def out_of_memory(models: GpuModels) -> dict[str, Any]:
    """On a card with limited memory, the batch is halved until it fits and gives the same ids as that size."""
    if not models.on_gpu:
        return {"left_out": "no GPU"}
    batch, n, total = models.batch(TOO_LARGE), models.size.draft_steps, torch.cuda.get_device_properties(0).total_memory
    halving = Halving("draft", TOO_LARGE)
    with models.way("graphs"):
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + SMALL_BYTES) / total)
        try:
            prefixes = halving(lambda some: models.draft(batch.part(some), n).tokens, TOO_LARGE)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    few = slice(0, halving.size)
    with models.way("fused"):
        right = bool((np.concatenate(prefixes)[few] == models.draft(batch.part(few), n).tokens).all())
    return {"images_at_once": halving.size, "wrong": [] if right else ["halved batches gave other ids"]}


def same(found: Tensor, expected: Tensor) -> float:
    return float((found == expected).float().mean())
