"""A performance model of a GPU: predicts the time of counted kernels, with parameters fitted to measured times.

A kernel takes a fixed time plus the longer of two: operations over a rate, or bytes over a bandwidth. Products reach
half of the peak rate at `half_rows` rows. Kernels run back to back, as in a CUDA graph; eager mode would add host time.
`python -m tandem.counting.card_model` prints the tables of docs/GPU.md. It needs the Triton package, but no GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tandem.assembly import Preparation
from tandem.config import VarConfig
from tandem.counting.costs import META, empty_var
from tandem.counting.launches import Launch, counted
from tandem.counting.roofline import DRAFTER, REFINER, SAMPLING, SCALES, name_of, row, table
from tandem.limits import pretend
from tandem.quantizer import Quantizer
from tandem.scales import decode_scales

KINDS = ("step", "fused", "reduction", "product", "attention", "convolution", "bicubic", "fp8")
CACHE_BYTES = 30e6  # a kernel whose tensors have fewer finds them in the GPU's cache
BF16, CUDA = torch.bfloat16, torch.device("cuda")


class KernelCounts:
    """The kernels of one scale as arrays: index into KINDS, operations, bytes, rows of a product. All [n]."""

    def __init__(self, launches: Sequence[Launch]):
        kinds = ["bicubic" if launch.name.startswith("upsample_bicubic") else launch.kind for launch in launches]
        self.kind = np.array([KINDS.index(kind) for kind in kinds], dtype=np.int64)
        self.flops, self.bytes, self.rows = (
            np.array([getattr(launch, name) for launch in launches]) for name in ("flops", "bytes", "rows")
        )

    def __len__(self) -> int:
        return len(self.kind)

    def are(self, kind: str) -> np.ndarray:
        return np.asarray(self.kind == KINDS.index(kind))

    @property
    def multiply(self) -> np.ndarray:
        """Products and attention."""
        return self.are("product") | self.are("fp8") | self.are("attention")


@dataclass(frozen=True)
class CardModel:
    """
    Attributes:
        peak_tflops, copy_gbps: measured rates of large products and copies.
        fp8_tflops, fp8_half_rows: as peak_tflops and half_rows, for products in FP8.
        conv_tflops, bicubic_gbps: measured rates of the quantizer's float32 convolution and torch's bicubic resizing.
        launch_us: fixed time of every kernel.
        cached: bandwidth of the cache over that of the memory.
        step, reduction: shares of the bandwidth that elementwise kernels and reductions reach.
        half_rows: rows at which a product reaches half of the peak.
        attention: share of the peak that attention reaches.
        host_ms: host time before the first scale, until kernels run back to back.
    """

    peak_tflops: float
    copy_gbps: float
    fp8_tflops: float
    fp8_half_rows: float
    conv_tflops: float
    bicubic_gbps: float
    launch_us: float
    cached: float
    step: float
    reduction: float
    half_rows: float
    attention: float
    host_ms: float

    def kernels_ms(self, kernels: KernelCounts) -> float:
        """Milliseconds of kernels that run back to back."""
        shares = np.array([self.step, self.step, self.reduction, 1.0, 1.0, self.step, 1.0, 1.0])[kernels.kind]
        in_cache = (kernels.bytes < CACHE_BYTES) & ~kernels.multiply
        bandwidth = self.copy_gbps * 1e9 * shares * np.where(in_cache, self.cached, 1.0)
        bandwidth = np.where(kernels.are("bicubic"), self.bicubic_gbps * 1e9, bandwidth)
        rate = np.full(len(kernels), self.peak_tflops * self.attention)
        for kind, peak, half in (
            ("product", self.peak_tflops, self.half_rows),
            ("fp8", self.fp8_tflops, self.fp8_half_rows),
        ):
            rate = np.where(kernels.are(kind), peak * kernels.rows / (kernels.rows + half), rate)
        rate = np.where(kernels.are("convolution"), self.conv_tflops, rate)
        work_s = np.divide(kernels.flops, rate * 1e12, out=np.zeros(len(kernels)), where=kernels.flops > 0)
        return 1e3 * float(np.sum(self.launch_us * 1e-6 + np.maximum(work_s, kernels.bytes / bandwidth)))

    def scale_ms(self, scales: Sequence[KernelCounts]) -> list[float]:
        """Milliseconds of each scale of a decode with a graph per scale. Host time counts once, at the first scale."""
        found = [self.kernels_ms(kernels) for kernels in scales]
        return [found[0] + self.host_ms, *found[1:]]


# Measured directly on an H100 (in RUN: `ceilings`, and `parts` "residual" minus "bicubic"). The values of FP8, with a
# scale per row, follow from its rates at 12,800 and at 128 rows
MEASURED = {"peak_tflops": 770.0, "copy_gbps": 3000.0, "conv_tflops": 0.176, "bicubic_gbps": 3.75}
MEASURED |= {"fp8_tflops": 1340.0, "fp8_half_rows": 590.0}
# Fitted values: start of the search, lower and upper bound
FITTED = {
    "launch_us": (3.0, 1.0, 8.0),
    "cached": (2.0, 1.0, 4.0),
    "step": (0.7, 0.3, 1.0),
    "reduction": (0.5, 0.2, 1.0),
    "half_rows": (320.0, 50.0, 2000.0),
    "attention": (0.5, 0.05, 1.0),
    "host_ms": (2.0, 0.1, 8.0),
}
# Result of `fit` on every second measured scale
H100 = CardModel(
    **MEASURED,
    launch_us=2.94,
    cached=1.77,
    step=0.584,
    reduction=1.0,
    half_rows=255,
    attention=0.502,
    host_ms=3.48,
)
RUN = "h100_2026-11-26/plain.jsonl"  # below docs/runs/gpu: times of each scale of d30 at N = 8, a graph per scale


@lru_cache
def trace(
    config: VarConfig, batch: int, start: int, stop: int, fused: bool, fp8: bool = False
) -> tuple[KernelCounts, ...]:
    """The kernels of each of the scales start..stop of a batch under CFG, in bfloat16; `fp8`: large products in FP8."""
    offsets, scales, seen = config.pyramid.offsets, [], 0
    with pretend(CUDA), torch.inference_mode():
        var = empty_var(config, BF16, Preparation(fp8=fp8))
        with torch.device(META):
            quantizer = Quantizer(config.pyramid, config.vocab_size, config.latent_channels, 0.5, 4)
            labels_B = torch.empty(batch, dtype=torch.int64)
            noise_BL = torch.empty(batch, offsets[-1], dtype=torch.int64)
        if fused:
            from tandem.fused import FusedVar
            from tandem.fused_vqvae import FusedQuantizer

            var.fused, quantizer.fused = FusedVar(var), FusedQuantizer(quantizer)
        with counted() as launches:
            for _ in decode_scales(var, quantizer, labels_B, noise_BL, noise_BL[:, : offsets[start]], stop, SAMPLING):
                scales.append(KernelCounts(launches[seen:]))
                seen = len(launches)
    return tuple(scales)


@dataclass(frozen=True)
class MeasuredScale:
    """One scale (0-based) of a decode of `batch` images: its kernels, and the milliseconds that a GPU took."""

    batch: int
    scale: int
    kernels: KernelCounts
    ms: float


def h100_measurements(folder: Path) -> list[MeasuredScale]:
    """The scales of d30 at N = 8, plain kernels, a graph per scale, from the raw file of a run below `folder`."""
    lines = map(json.loads, (folder / RUN).read_text().splitlines())
    speed = next(line for line in lines if line["section"] == "speed_graphs")
    return [
        MeasuredScale(batch, scale, trace(DRAFTER, batch, 0, 8, False)[scale], ms)
        for batch in (64, 8, 1)
        for scale, ms in enumerate(speed[f"N8_b{batch}"]["scales"])
    ]


def predicted_ms(card: CardModel, measured: MeasuredScale) -> float:
    return card.kernels_ms(measured.kernels) + (0.0 if measured.scale else card.host_ms)


def fit(known: Mapping[str, float], measured: Sequence[MeasuredScale], steps: int = 6000) -> CardModel:
    """The model whose times are nearest to the measured ones, by the log of their ratio: a random search with a fixed
    seed. `known` are the rates that were measured directly."""
    names = list(FITTED)
    start, low, high = np.array(list(FITTED.values())).T
    rng, width = np.random.default_rng(0), 0.4

    def model(values: np.ndarray) -> CardModel:
        return CardModel(**known, **dict(zip(names, map(float, values), strict=True)))

    def loss(values: np.ndarray) -> float:
        card = model(values)
        return float(np.mean([np.log(predicted_ms(card, one) / one.ms) ** 2 for one in measured]))

    best, least = start, loss(start)
    for step in range(steps):
        tried = np.clip(best * np.exp(rng.normal(0, width, len(best)) * (rng.random(len(best)) < 0.4)), low, high)
        if (found := loss(tried)) < least:
            best, least = tried, found
        width *= 0.8 if step % 300 == 299 else 1.0
    return model(best)


def stage_ms(
    card: CardModel, draft_steps: int | None, batch: int, fused: bool, whole: bool, fp8: bool = False
) -> tuple[float, float]:
    """Milliseconds of draft and refine of a batch; `whole`: a graph per stage, without host time."""
    found = []
    for config, start, stop in ((DRAFTER, 0, draft_steps or SCALES), (REFINER, draft_steps or SCALES, SCALES)):
        scales = trace(config, batch, start, stop, fused, fp8) if start < stop else ()
        found.append(sum(card.scale_ms(scales)) - (card.host_ms if whole else 0.0) if scales else 0.0)
    return found[0], found[1]


def counts(fused: bool) -> dict[str, tuple[int, float]]:
    """Of draft and refine at N = 8 and batch 64: number of kernels, and GB moved by all that are not products."""
    found = {}
    for stage, (config, start, stop) in {"draft": (DRAFTER, 0, 8), "refine": (REFINER, 8, SCALES)}.items():
        scales = trace(config, 64, start, stop, fused)
        others = sum(float(k.bytes[~k.multiply].sum()) for k in scales)
        found[stage] = sum(map(len, scales)), others / 1e9
    return found


def speed_row(draft_steps: int | None, batch: int) -> str:
    """A row of predictions: plain kernels, fused ones, a graph per stage, and FP8."""
    settings = (False, False), (True, False), (True, True), (True, True, True)
    ways = [stage_ms(H100, draft_steps, batch, *setting) for setting in settings]
    shown = [f"{draft:.1f} + {refine:.1f} ({1e3 * batch / (draft + refine):.0f})" for draft, refine in ways]
    return row([name_of(draft_steps), str(batch), *shown])


def tables() -> str:
    """Predicted milliseconds and images a second, and what was counted, in Markdown."""
    speed = [speed_row(draft_steps, batch) for draft_steps in (6, 8, None) for batch in (64, 8, 1)]
    columns = [
        "setting",
        "batch",
        "plain, a graph per scale",
        "fused, a graph per scale",
        "a graph per stage",
        "the same with `--fp8`",
    ]
    counted_rows = []
    before, after = counts(False), counts(True)
    for stage in before:
        (launches, moved), (fewer, less) = before[stage], after[stage]
        counted_rows.append(row([stage, f"{launches:,}", f"{fewer:,}", f"{moved:.0f}", f"{less:.0f}"]))
    heads = ["stage", "kernels, plain", "fused", "GB outside products, plain", "fused"]
    return "\n\n".join(
        [
            table("Predicted: draft + refine in milliseconds, and images a second of both", columns, speed),
            table("Counted at N = 8 and batch 64", heads, counted_rows),
        ]
    )


if __name__ == "__main__":
    print(tables())
