"""The models of `tandem bench card` on one device: random weights, batches of them, and a clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tandem.assembly import PLAIN, Preparation, assemble_var, assemble_vqvae, build_empty
from tandem.collaborative import decode, draft, generate_alone, refine
from tandem.config import VAR_PRESETS, VQVAE_PRESET, SamplingConfig, VarConfig, VqvaeConfig
from tandem.errors import InputError
from tandem.fp8 import check_device
from tandem.graphs import CudaCapture, Graphs
from tandem.initial import initial_value
from tandem.prefix import Prefix
from tandem.sampling import uniforms
from tandem.var import Var
from tandem.vqvae import Vqvae
from tandem_jobs.bench.peak_memory import free_memory

# --kernels plain; fused kernels only; with CUDA graphs (the default); with --fp8 too
Way = Literal["plain", "fused", "graphs", "fp8"]
WAYS: tuple[Way, ...] = ("plain", "fused", "graphs", "fp8")
GRAPHED: tuple[Way, ...] = ("graphs", "fp8")
TINY_PATCH_NUMS = (1, 2, 3, 4)
TINY = (
    VarConfig(2, 4, 64, 8, TINY_PATCH_NUMS),
    VarConfig(1, 4, 64, 8, TINY_PATCH_NUMS),
    VqvaeConfig(64, 8, 32, (1, 1), 1, stem_patch=2, patch_nums=TINY_PATCH_NUMS),
)
SAMPLING = SamplingConfig()
Sampling = SamplingConfig | Sequence[SamplingConfig]  # one for the batch, or one per image


@dataclass(frozen=True)
class Size:
    """Models and settings to measure: configs, batches from the largest, N and other values of N."""

    drafter: VarConfig
    refiner: VarConfig
    vqvae: VqvaeConfig
    batches: tuple[int, ...]
    draft_steps: int
    others: tuple[int, ...]


SIZES = {
    "published": Size(VAR_PRESETS["d30"], VAR_PRESETS["d16"], VQVAE_PRESET, (64, 8, 1), 8, (6,)),
    "tiny": Size(*TINY, (2, 1), 2, (1,)),
}


@dataclass(frozen=True)
class DecodeInputs:
    """Labels int64 [B] and uniforms int64 [B, L] of one batch."""

    labels_B: Tensor
    uniforms_BL: Tensor

    def part(self, rows: slice) -> DecodeInputs:
        return DecodeInputs(self.labels_B[rows], self.uniforms_BL[rows])


class GpuModels:
    """Drafter, refiner and VQVAE of a size on one device, in bfloat16 on a GPU."""

    def __init__(self, size: Size, device: torch.device):
        self.size, self.device, self.on_gpu = size, device, device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.without_fp8 = reason_against_fp8(device)
        self.ways = tuple(way for way in WAYS if way != "fp8" or self.without_fp8 is None)
        preparation = Preparation(kernels="auto" if self.on_gpu else "plain", fp8=self.without_fp8 is None)
        self.drafter, self.refiner = (
            random_on(device, c, self.dtype, preparation) for c in (size.drafter, size.refiner)
        )
        with torch.device(device):
            values = Vqvae(size.vqvae).state_dict()
        self.vqvae = assemble_vqvae(size.vqvae, values.__getitem__, self.dtype, device, preparation)
        parts: tuple[Any, ...] = (self.drafter, self.refiner, self.vqvae, self.vqvae.quantize)
        self.fused = [(part, part.fused) for part in parts]
        products = [layer for var in (self.drafter, self.refiner) for block in var.layers for layer in block.products]
        self.fp8 = [(layer, layer.fp8_OI) for layer in products]
        self.use_fp8(False)

    @contextmanager
    def way(self, way: Way) -> Iterator[None]:
        """Context manager: compute in one of the ways. Frees graphs before and after."""
        models: tuple[Var | Vqvae, ...] = (self.drafter, self.refiner, self.vqvae)
        try:
            for part, fused in self.fused:
                part.fused = None if way == "plain" else fused
            self.use_fp8(way == "fp8")
            if way in GRAPHED and self.on_gpu:
                for model in models:
                    model.graphs = Graphs(CudaCapture(self.device))
            yield
        finally:
            for part, fused in self.fused:
                part.fused = fused
            self.use_fp8(False)
            for model in models:
                model.graphs = None
            free_memory(self.device)

    def use_fp8(self, wanted: bool) -> None:
        """Let all matrix products use FP8 weights, or none."""
        for layer, fp8_OI in self.fp8:
            layer.fp8_OI = fp8_OI if wanted else None

    def batch(self, size: int, first: int = 0) -> DecodeInputs:
        """Inputs of images first..first + size, cycling through the classes."""
        index = np.arange(first, first + size)
        labels = torch.from_numpy(index % self.size.drafter.num_classes)
        noise = uniforms(0, index, self.size.drafter.pyramid.num_tokens)
        return DecodeInputs(labels.to(self.device), noise.to(self.device))

    def draft(self, batch: DecodeInputs, draft_steps: int, sampling: Sampling = SAMPLING) -> Prefix:
        quantizer = self.vqvae.quantize
        return draft(self.drafter, quantizer, batch.labels_B, batch.uniforms_BL, draft_steps, sampling)

    def refine(self, batch: DecodeInputs, prefix: Prefix, sampling: Sampling = SAMPLING) -> Tensor:
        return refine(self.refiner, self.vqvae.quantize, batch.labels_B, batch.uniforms_BL, prefix, sampling)

    def ids(self, batch: DecodeInputs, sampling: Sampling = SAMPLING) -> Tensor:
        """Token ids int64 [B, L] of CoDe at the size's N."""
        return self.refine(batch, self.draft(batch, self.size.draft_steps, sampling), sampling)

    def alone(self, batch: DecodeInputs) -> Tensor:
        """Pixels of plain VAR of the drafter."""
        return generate_alone(self.drafter, self.vqvae, batch.labels_B, batch.uniforms_BL, SAMPLING)[0]

    def decode(self, ids_BL: Tensor) -> Tensor:
        return decode(self.vqvae, ids_BL)

    def clock(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def median_ms(self, work: Callable[[], Any], repeats: int, warm: int = 1) -> float:
        """Milliseconds of a piece of work on the host's clock, after `warm` runs that do not count."""
        taken = []
        for _ in range(warm + repeats):
            began = self.clock()
            work()
            taken.append(1e3 * (self.clock() - began))
        return statistics.median(taken[warm:])

    @torch.inference_mode()
    def kernel_ms(self, work: Callable[[], Any], times: int = 20) -> float:
        """Milliseconds of a small piece of work, between events on the device."""
        if not self.on_gpu:
            return self.median_ms(work, 1)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for run in range(times + 3):
            if run == 3:
                begin.record()
            work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / times


def reason_against_fp8(device: torch.device) -> str | None:
    """Why a device does not multiply in FP8, if it does not."""
    try:
        if device.type == "cuda":
            check_device(device)
    except InputError as error:
        return str(error)
    return None


def random_on(
    device: torch.device, config: VarConfig, dtype: torch.dtype, preparation: Preparation | None = PLAIN
) -> Var:
    """Random weights, made on the device: on a CPU those of d30 take half a minute."""
    shapes = {name: tensor.shape for name, tensor in build_empty(config).named_parameters()}
    torch.manual_seed(0)

    def value(name: str) -> Tensor:
        with torch.device(device):
            return initial_value(name, shapes[name], config, 1.0)

    return assemble_var(config, value, dtype, device, preparation)
