"""`tandem bench decode`: draft, refine and VQVAE decode against the matrix-multiplication peak of the same process."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from jobs.decode_report import plot, print_memory, print_speed, print_table
from jobs.options import MeasuredOptions, PreparationOptions
from jobs.progress import say
from jobs.resident import reset_resident, resident_bytes
from tandem.assembly import Preparation
from tandem.collaborative import decode, decode_scales
from tandem.costs import decode_flops, kv_bytes, scale_flops, tensor_bytes
from tandem.errors import InputError
from tandem.sampling import uniforms
from tandem.var import Var
from tandem.vqvae import Vqvae
from workers.models import DTYPES, load_tokenizer, load_transformer, pick_device, resolve_models

EXAMPLES = """examples:
  tandem bench decode --drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights \\
      --dtype bfloat16 --draft-steps 8 --batches 8
  tandem bench decode                             the embedded model
  tandem bench decode --paper-table 3 --drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights

Work is counted as the published code does it, so a share of the peak can be above 1 where work was saved. The peak is
the best of repeated multiplications of 4096 x 1920 by 1920 x 7680, taken before and after every run. The last line on
stdout is one JSON object: the first N at the first batch, and all runs in "runs"."""
PEAK_SHAPE = (4096, 1920, 7680)
PEAK_REPEATS = 8


class BenchDecodeSpec(PreparationOptions, MeasuredOptions):
    """Seconds, work, share of the matrix peak and bytes of decoding, beside plain VAR of the same drafter."""

    draft_steps: tuple[PositiveInt, ...] | None = Field(None, description="values of N; default: about 0.7 K")
    batches: tuple[PositiveInt, ...] = Field((8,), description="images of a batch")
    threads: NonNegativeInt = Field(0, description="CPU threads; 0: one a core")
    repeats: PositiveInt = Field(3, description="timed runs of each setting; medians are reported")
    plain_var: bool = Field(True, description="run plain VAR of the drafter as well, the yardstick of the speed-up")
    paper_table: Literal["1", "3"] | None = Field(
        None, description="print the paper's Table 1 (speed) or 3 (memory; counted, nothing is run) beside ours"
    )
    out: Path | None = Field(None, description="folder for decode.json and decode.png (the plot needs matplotlib)")


@dataclass(frozen=True)
class Setting:
    """One thing to measure. `draft_steps` None: plain VAR."""

    draft_steps: int | None
    batch: int

    @property
    def name(self) -> str:
        return "plain VAR" if self.draft_steps is None else f"N = {self.draft_steps}"


class Bench:
    """The models on one device, and how they are timed."""

    def __init__(self, spec: BenchDecodeSpec):
        self.device, self.spec = pick_device(), spec
        if spec.threads:
            torch.set_num_threads(spec.threads)
        self.dtype_name = spec.dtype if spec.dtype != "auto" else ("bfloat16" if self.on_gpu else "float32")
        self.dtype, self.how = DTYPES[self.dtype_name], Preparation.of(spec)
        models = resolve_models(spec.drafter, spec.refiner, spec.vqvae, spec.random_weights)
        self.pyramid, self.sampling = models.drafter_config.pyramid, models.sampling
        steps = spec.draft_steps or (self.pyramid.default_draft_steps,)
        codes = [Setting(self.pyramid.check_draft_steps(n), batch) for batch in spec.batches for n in steps]
        plain = [Setting(None, batch) for batch in spec.batches] if spec.plain_var else []
        self.settings = [*codes, *plain]
        assert models.refiner_config is not None
        self.configs = {"draft": models.drafter_config, "refine": models.refiner_config}
        self.vqvae_config = models.vqvae_config
        self.peaks: list[float] = []
        if spec.paper_table == "3":
            return
        refs = {"draft": models.drafter, "refine": models.ref("refiner")}
        self.vars: dict[str, Var] = {}
        for stage, ref in refs.items():
            began = time.perf_counter()
            self.vars[stage] = load_transformer(ref, self.dtype, self.device, self.how)
            say(f"{ref.role} {ref.source}: loaded in {time.perf_counter() - began:.1f} s")
        self.vqvae: Vqvae = load_tokenizer(models.vqvae, self.pyramid.patch_nums, self.dtype, self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def weight_bytes(self) -> int:
        return sum(tensor_bytes(model) for model in (*self.vars.values(), self.vqvae))

    def clock(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @torch.inference_mode()
    def gemm_peak(self) -> float:
        """FLOP/s of the best of repeated multiplications now."""
        rows, inner, outer = PEAK_SHAPE
        x, weight = (torch.randn(n, inner, device=self.device).to(self.dtype) for n in (rows, outer))
        seconds = []
        for _ in range(PEAK_REPEATS):
            began = self.clock()
            F.linear(x, weight)
            seconds.append(self.clock() - began)
        self.peaks.append(2.0 * rows * inner * outer / min(seconds))
        return self.peaks[-1]

    def stages(self, setting: Setting) -> list[tuple[str, int, int]]:
        """(whose model, first scale, scale after the last) of a setting."""
        scales = self.pyramid.num_scales
        if setting.draft_steps is None:
            return [("draft", 0, scales)]
        return [("draft", 0, setting.draft_steps), ("refine", setting.draft_steps, scales)]

    def flops(self, setting: Setting) -> float:
        """Counted work of draft and refine, of one batch."""
        rows = 2 if self.sampling.cfg > 0 else 1
        per_image = sum(sum(scale_flops(self.configs[s], a, b, rows)) for s, a, b in self.stages(setting))
        return setting.batch * per_image

    def kv_bytes(self, setting: Setting, device: torch.device) -> int:
        """KV cache and scratch alive at once: the drafter's is freed before the refiner's is made."""
        rows = setting.batch * (2 if self.sampling.cfg > 0 else 1)
        return max(kv_bytes(self.configs[s], rows, a, b, self.dtype, device) for s, a, b in self.stages(setting))

    def kv_bytes_on_a_gpu(self, draft_steps: int | None, batch: int) -> int:
        return self.kv_bytes(Setting(draft_steps, batch), torch.device("cuda"))

    def run(self, setting: Setting) -> dict[str, Any]:
        """One timed run, with the peak before and after it."""
        peak = self.gemm_peak()
        reset_resident(self.device)
        labels_B = torch.arange(setting.batch, device=self.device) % self.configs["draft"].num_classes
        noise_BL = uniforms(0, np.arange(setting.batch), self.pyramid.num_tokens).to(self.device)
        ids_BL, scale_s, stage_s = noise_BL[:, :0], [], {}
        for stage, _, stop in self.stages(setting):
            decoding = self.vars[stage], self.vqvae.quantize, labels_B, noise_BL, ids_BL, stop, self.sampling
            steps = list(self.timed(decode_scales(*decoding)))
            ids_BL = steps[-1][0]
            scale_s += [seconds for _, seconds in steps]
            stage_s[stage] = sum(seconds for _, seconds in steps)
        began = self.clock()
        decode(self.vqvae, ids_BL)
        decode_s = self.clock() - began
        resident = resident_bytes(self.device)
        peak = max(peak, self.gemm_peak())
        return {
            "scale_s": scale_s,
            "draft_s": stage_s["draft"],
            "refine_s": stage_s.get("refine", 0.0),
            "decode_s": decode_s,
            "gemm_share": self.flops(setting) / sum(stage_s.values()) / peak,
            "decode_gemm_share": setting.batch * decode_flops(self.vqvae_config) / decode_s / peak,
            "resident_bytes": resident,
        }

    def timed(self, scales: Iterator[Tensor]) -> Iterator[tuple[Tensor, float]]:
        """Each result of a generator with the seconds it took."""
        began = self.clock()
        for ids_BL in scales:
            now = self.clock()
            yield ids_BL, now - began
            began = now

    def row(self, setting: Setting, runs: list[dict[str, Any]]) -> dict[str, Any]:
        """Medians of the runs of a setting, and what is counted."""
        middle = {
            name: statistics.median(run[name] for run in runs)
            for name in ("draft_s", "refine_s", "decode_s", "gemm_share", "decode_gemm_share")
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
            "tflop_per_image": round(self.flops(setting) / setting.batch / 1e12, 4),
            "decode_tflop_per_image": round(decode_flops(self.vqvae_config) / 1e12, 4),
            "kv_bytes": self.kv_bytes(setting, self.device),
            "weight_bytes": self.weight_bytes(),
            "resident_bytes": max(run["resident_bytes"] for run in runs),
        }


def run(spec: BenchDecodeSpec) -> dict[str, Any]:
    """Measure and report: a table on stderr, JSON on the last line of stdout, and a plot where a folder is given."""
    if spec.out is not None and spec.out.exists() and not spec.out.is_dir():
        raise InputError(f"--out: expected a folder, got the file {spec.out}")
    bench = Bench(spec)
    if spec.paper_table == "3":
        result: dict[str, Any] = {
            "paper_table": 3,
            "rows": print_memory(lambda n, batch: bench.kv_bytes(Setting(n, batch), torch.device("cuda"))),
        }
    else:
        result = measure(bench)
    if spec.out is not None:
        spec.out.mkdir(parents=True, exist_ok=True)
        (spec.out / "decode.json").write_text(json.dumps(result, indent=1) + "\n")
        if "runs" in result:
            plot(result, spec.out / "decode.png")
    print(json.dumps(result), flush=True)
    return result


def measure(bench: Bench) -> dict[str, Any]:
    """All settings, round after round, so that a slow minute of the machine meets them all."""
    spec = bench.spec
    found: dict[Setting, list[dict[str, Any]]] = {setting: [] for setting in bench.settings}
    if bench.how.compile or bench.how.cuda_graphs:
        for setting in bench.settings:
            say(f"{setting.name}, batch {setting.batch}: compiling and capturing, in a run that does not count")
            bench.run(setting)
    for repeat in range(spec.repeats):
        for setting in bench.settings:
            one = bench.run(setting)
            found[setting].append(one)
            say(
                f"run {repeat + 1} of {spec.repeats}, {setting.name}, batch {setting.batch}: "
                f"draft {one['draft_s']:.2f} s, refine {one['refine_s']:.2f} s, "
                f"decode {one['decode_s']:.2f} s, share {one['gemm_share']:.3f}"
            )
    rows = [bench.row(setting, runs) for setting, runs in found.items()]
    plain = {row["batch"]: row["images_per_s"] for row in rows if row["draft_steps"] is None}
    for row in rows:
        if row["batch"] in plain:
            row["speed_up"] = round(row["images_per_s"] / plain[row["batch"]], 3)
    head = {name: rows[0][name] for name in HEADLINE}
    result = {
        **head,
        "gemm_peak_gflops": round(max(bench.peaks) / 1e9, 1),
        "device": str(bench.device),
        "dtype": bench.dtype_name,
        "threads": torch.get_num_threads(),
        "models": {role: getattr(spec, role) for role in ("drafter", "refiner", "vqvae")},
        **asdict(bench.how),
        "repeats": spec.repeats,
        "runs": rows,
    }
    if bench.vars["draft"].table is not None:
        result["host_bytes"] = sum(v.table.num_bytes for v in bench.vars.values() if v.table is not None)
    print_table(result)
    if spec.paper_table == "1":
        print_speed(rows)
    return result


HEADLINE = (
    "draft_steps",
    "batch",
    "images_per_s",
    "images_per_s_with_decode",
    "gemm_share",
    "decode_gemm_share",
    "resident_bytes",
    "kv_bytes",
    "weight_bytes",
)


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv[1:1] = ["bench", "decode"]
    sys.exit(main())
