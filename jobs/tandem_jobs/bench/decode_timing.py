"""The models of `tandem bench decode` on one device, and how they are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from tandem.collaborative import decode
from tandem.config import SamplingConfig
from tandem.counting.costs import Bytes, decode_flops, kv_bytes, scale_flops, tensor_bytes, var_bytes, vqvae_bytes
from tandem.graphs import release_graphs
from tandem.guidance import rows_of_scales
from tandem.kernels import compute_dtype
from tandem.sampling import uniforms
from tandem.scales import Decode, decode_scales
from tandem.var import Var
from tandem.vqvae import Vqvae
from tandem_jobs.bench.peak_memory import anonymous_bytes, free_memory, reset_resident, resident_bytes
from tandem_jobs.bench.peers import PeerName, check_peers
from tandem_jobs.bench.published_code import check_checkout, check_shapes
from tandem_jobs.options.options import GuidanceOptions, MeasuredOptions
from tandem_jobs.run.decode_choices import choose_draft_steps, choose_dtype, choose_preparation, choose_sampling
from tandem_jobs.run.progress import say
from tandem_workers.models.model_set import DTYPES, load_tokenizer, load_transformer, pick_device, resolve_models

PEAK_SHAPE = (4096, 1920, 7680)
PEAK_REPEATS = 8
GPU_PRODUCTS = 100  # between two readings of the clock: one product takes 0.2 ms, not much more than a reading
MOMENT_REPEATS = 2  # after each scale that is long enough for the machine's speed to have changed
LONG_SCALE_S = 5.0


class BenchDecodeSpec(MeasuredOptions, GuidanceOptions):
    """Measure decoding: seconds, work, share of the matrix peak and bytes, compared with plain VAR of the drafter."""

    draft_steps: tuple[PositiveInt, ...] | None = Field(None, description="values of N; default: about 0.7 K")
    batches: tuple[PositiveInt, ...] = Field((8,), description="images per batch")
    threads: NonNegativeInt = Field(0, description="CPU threads; 0: one per core")
    repeats: PositiveInt = Field(3, description="timed runs of each setting; medians are reported")
    plain_var: bool = Field(True, description="also run plain VAR with the drafter, the baseline of the speed-up")
    paper_table: Literal["1", "3"] | None = Field(
        None, description="print the paper's Table 1 (speed) or 3 (memory; counted, nothing is run) next to ours"
    )
    peers: tuple[PeerName, ...] | None = Field(
        None,
        description="also time other generators with their published shapes and random weights, in the same rounds as "
        "the first N (all but mar-b need pip install 'tandem-code[peers]')",
    )
    published: Path | None = Field(
        None,
        description="a checkout of the published CoDe code, to measure in turn with ours on models of the published "
        "shapes, each with the memory to itself; in float32 on a CPU",
    )
    out: Path | None = Field(None, description="folder for decode.json and decode.png (the plot needs matplotlib)")


@dataclass(frozen=True)
class Setting:
    """One thing to measure. `draft_steps` None: plain VAR of the drafter; 0: plain VAR of the refiner."""

    draft_steps: int | None
    batch: int

    @property
    def name(self) -> str:
        names = {None: "plain VAR", 0: "refiner alone"}
        return names.get(self.draft_steps, f"N = {self.draft_steps}")


class Bench:
    """The models on one device, and how they are timed."""

    def __init__(self, spec: BenchDecodeSpec):
        check_peers(spec.peers or ())
        if spec.published is not None:
            check_checkout(spec.published)
        self.device, self.spec = pick_device(), spec
        if spec.threads:
            torch.set_num_threads(spec.threads)
        # the paper counts its table of memory in 16 bits
        self.dtype_name = choose_dtype(spec.dtype, self.on_gpu or spec.paper_table == "3")
        self.dtype = DTYPES[self.dtype_name]
        self.preparation = choose_preparation(spec, self.on_gpu, self.dtype_name)
        models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights)
        self.models, self.pyramid = models, models.drafter_config.pyramid
        self.sampling = choose_sampling(spec, models.sampling, self.pyramid)
        steps = spec.draft_steps or (models.default_draft_steps,)
        codes = [Setting(choose_draft_steps(n, models), batch) for batch in spec.batches for n in steps]
        plain = [Setting(None, batch) for batch in spec.batches] if spec.plain_var else []
        self.settings = [*codes, *plain]
        assert models.refiner_config is not None
        self.configs = {"draft": models.drafter_config, "refine": models.refiner_config}
        self.vqvae_config = replace(models.vqvae_config, patch_nums=self.pyramid.patch_nums)
        if spec.published is not None:
            check_shapes(models.drafter_config, models.refiner_config, self.vqvae_config)
        self.peaks: list[float] = []
        if spec.paper_table != "3":
            self.load()

    def load(self) -> None:
        """Load the models."""
        models = self.models
        refs = {"draft": models.drafter, "refine": models.ref("refiner")}
        self.vars: dict[str, Var] = {}
        for stage, ref in refs.items():
            began, before = time.perf_counter(), anonymous_bytes()
            self.vars[stage] = load_transformer(ref, self.dtype, self.device, self.preparation)
            grown, kept = anonymous_bytes() - before, host_bytes(self.vars[stage], self.device)
            took = f"loaded in {time.perf_counter() - began:.1f} s"
            say(f"{ref.role} {ref.source}: {took}; {kept / 1e6:,.0f} MB on the host, RssAnon {grown / 1e6:+,.0f} MB")
        self.vqvae: Vqvae = load_tokenizer(
            models.vqvae, self.pyramid.patch_nums, self.dtype, self.device, self.preparation
        )

    def unload(self) -> None:
        """Free the models' memory, until they are loaded again."""
        release_graphs()
        del self.vars, self.vqvae
        free_memory(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def launches_stages(self) -> bool:
        """Whether a stage is one CUDA graph, so that its scales cannot be timed."""
        return self.preparation.cuda_graphs and self.on_gpu

    def weight_bytes(self) -> int:
        return sum(tensor_bytes(model) for model in (*self.vars.values(), self.vqvae))

    def clock(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @torch.inference_mode()
    def gemm_rate(self, repeats: int) -> float:
        """Best FLOP/s of repeated matrix products at present, in the dtype in which this device multiplies."""
        rows, inner, outer = PEAK_SHAPE
        dtype = compute_dtype(self.dtype, self.device)
        x, weight = (torch.randn(n, inner, device=self.device).to(dtype) for n in (rows, outer))
        seconds, products = [], GPU_PRODUCTS if self.on_gpu else 1
        for _ in range(repeats):
            began = self.clock()
            for _ in range(products):
                F.linear(x, weight)
            seconds.append((self.clock() - began) / products)
        return 2.0 * rows * inner * outer / min(seconds)

    def gemm_peak(self) -> float:
        """The rate over many repeats, cached."""
        self.peaks.append(self.gemm_rate(PEAK_REPEATS))
        return self.peaks[-1]

    def stages(self, setting: Setting) -> list[tuple[str, int, int]]:
        """(whose model, first scale, scale after the last) of a setting."""
        scales = self.pyramid.num_scales
        if not setting.draft_steps:
            return [("draft" if setting.draft_steps is None else "refine", 0, scales)]
        return [("draft", 0, setting.draft_steps), ("refine", setting.draft_steps, scales)]

    def sampling_of(self, stage: str) -> SamplingConfig:
        """How the tokens of a stage are drawn."""
        return self.sampling.of_refiner if stage == "refine" else self.sampling

    def rows_per_image(self, stage: str, start: int, stop: int) -> list[int]:
        """At each scale of a stage: under guidance a row with the class and one without."""
        return rows_of_scales([self.sampling_of(stage)], self.pyramid.num_scales, start, stop)

    def rows(self, setting: Setting, stage: str, start: int, stop: int) -> list[int]:
        """R of a batch at each scale of a stage."""
        return [setting.batch * rows for rows in self.rows_per_image(stage, start, stop)]

    def flops(self, setting: Setting) -> list[float]:
        """Counted work of one batch for each scale, or for each stage if a graph launches it as a whole."""
        stages = self.stages(setting)
        per_image = [scale_flops(self.configs[s], a, b, self.rows_per_image(s, a, b)) for s, a, b in stages]
        if self.launches_stages:
            return [setting.batch * sum(scales) for scales in per_image]
        return [setting.batch * flops for scales in per_image for flops in scales]

    def kv_bytes(self, setting: Setting, device: torch.device) -> int:
        """KV cache and scratch alive at once: the drafter's is freed before the refiner's is made (CUDA graphs, which
        keep both, are not counted)."""
        return max(
            kv_bytes(self.configs[s], self.rows(setting, s, a, b), a, b, self.dtype, device)
            for s, a, b in self.stages(setting)
        )

    def stage_bytes(self, setting: Setting, device: torch.device) -> dict[str, Bytes]:
        """Counted bytes of each stage on a kind of device, that of the VQVAE as "decode"."""
        batch, dtype = setting.batch, self.dtype
        found = {
            stage: var_bytes(
                self.configs[stage], batch, start, stop, dtype, device, self.preparation, self.sampling_of(stage)
            )
            for stage, start, stop in self.stages(setting)
        }
        return found | {"decode": vqvae_bytes(self.vqvae_config, batch, dtype, device)}

    def activation_bytes(self, setting: Setting) -> int:
        """Peak bytes of activations in any stage, in addition to weights and KV cache."""
        return max(counted.activations for counted in self.stage_bytes(setting, self.device).values())

    def run(self, setting: Setting) -> dict[str, Any]:
        """One timed run, with the peak before and after it, and the current rate after its long scales."""
        rates = [self.gemm_peak()]

        def add_rate(seconds: float) -> None:
            rates.append(self.gemm_rate(MOMENT_REPEATS) if seconds > LONG_SCALE_S else rates[-1])

        found = self.times(setting, add_rate)
        peak, decoding_s = max(rates[0], self.gemm_peak()), found["draft_s"] + found["refine_s"]
        return {
            **found,
            "gemm_share": sum(self.flops(setting)) / decoding_s / peak,
            "gemm_share_of_moment": least_s(self.flops(setting), rates) / decoding_s,
            "decode_gemm_share": setting.batch * decode_flops(self.vqvae_config) / found["decode_s"] / peak,
        }

    def times(self, setting: Setting, after_part: Callable[[float], None] = lambda seconds: None) -> dict[str, Any]:
        """Seconds of the stages and scales of one run, and its peak of resident bytes. `after_part` gets the seconds of
        each scale, or of each stage if a graph launches it as a whole."""
        reset_resident(self.device)
        labels_B = torch.arange(setting.batch, device=self.device) % self.configs["draft"].num_classes
        noise_BL = uniforms(0, np.arange(setting.batch), self.pyramid.num_tokens).to(self.device)
        ids_BL = noise_BL[:, :0]
        parts_s: list[float] = []
        stage_s: dict[str, float] = {}
        for stage, _, stop in self.stages(setting):
            sampling = self.sampling_of(stage)
            decoding = self.vars[stage], self.vqvae.quantize, labels_B, noise_BL, ids_BL, stop, sampling
            before = len(parts_s)
            for drawn_BL, seconds in self.timed(self.parts(decoding)):
                ids_BL = drawn_BL
                parts_s.append(seconds)
                after_part(seconds)
            stage_s[stage] = sum(parts_s[before:])
        began = self.clock()
        decode(self.vqvae, ids_BL)
        return {
            "scale_s": [] if self.launches_stages else parts_s,
            "draft_s": stage_s.get("draft", 0.0),
            "refine_s": stage_s.get("refine", 0.0),
            "decode_s": self.clock() - began,
            "resident_bytes": resident_bytes(self.device, self.launches_stages),
        }

    def parts(self, decoding: tuple[Any, ...]) -> Iterator[Tensor]:
        """Ids after each scale, or after all of them where graphs launch a stage at once."""
        if self.launches_stages:
            yield Decode.of(*decoding).tokens()
        else:
            yield from decode_scales(*decoding)

    def timed(self, scales: Iterator[Tensor]) -> Iterator[tuple[Tensor, float]]:
        """Each result of a generator with the seconds it took."""
        began = self.clock()
        for ids_BL in scales:
            now = self.clock()
            yield ids_BL, now - began
            began = self.clock()

    def row(self, setting: Setting, runs: list[dict[str, Any]]) -> dict[str, Any]:
        """Medians of the runs of a setting, and counted values."""
        middle = {
            name: statistics.median(run[name] for run in runs)
            for name in ("draft_s", "refine_s", "decode_s", "gemm_share", "gemm_share_of_moment", "decode_gemm_share")
        }
        decoding_s = statistics.median(run["draft_s"] + run["refine_s"] for run in runs)
        return {
            "draft_steps": setting.draft_steps,
            "batch": setting.batch,
            **{name: round(value, 4) for name, value in middle.items()},
            "images_per_s": round(setting.batch / decoding_s, 4),
            "images_per_s_with_decode": round(setting.batch / (decoding_s + middle["decode_s"]), 4),
            "scale_s": [
                round(statistics.median(times), 4) for times in zip(*(run["scale_s"] for run in runs), strict=True)
            ],
            "tflop_per_image": round(sum(self.flops(setting)) / setting.batch / 1e12, 4),
            "decode_tflop_per_image": round(decode_flops(self.vqvae_config) / 1e12, 4),
            "kv_bytes": self.kv_bytes(setting, self.device),
            "activation_bytes": self.activation_bytes(setting),
            "weight_bytes": self.weight_bytes(),
            "resident_bytes": max(run["resident_bytes"] for run in runs),
        }


def host_bytes(var: Var, device: torch.device) -> int:
    """Bytes of a model in host memory: its weights on a CPU, and its table of modulation vectors."""
    weights = tensor_bytes(var) if device.type == "cpu" else 0
    return weights + (var.table.num_bytes if var.table is not None else 0)


def least_s(flops: list[float], rates: list[float]) -> float:
    """Seconds of the work at the rate of matrix products: for each scale the mean of the rates before and after it."""
    return sum(2 * work / (before + behind) for work, before, behind in zip(flops, rates, rates[1:], strict=False))
