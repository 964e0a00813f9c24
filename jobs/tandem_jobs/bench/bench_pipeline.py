"""`tandem bench pipeline`: the real Ray pipeline with simulated stages, against the bound of its slowest stage.

The stages sleep for given times, on simulated GPUs, and pass on prefixes and pixels of real size. So it measures only
orchestration: scheduling, transport and backpressure, no model.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.table import Table

from tandem.config import PATCH_NUMS_256, Pyramid
from tandem.errors import InputError, JobError
from tandem_cluster.placement import check_gpus
from tandem_cluster.session import open_session
from tandem_jobs.bench.cpu_seconds import DRIVER, CpuSeconds, cpu_seconds, ms_per_shard
from tandem_jobs.options.flags import as_flag
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.backpressure import wanted_object_store
from tandem_jobs.run.outcome import StoredShard
from tandem_jobs.run.pipeline import Pipeline
from tandem_jobs.run.pools import ActorPool
from tandem_jobs.run.progress import RunProgress, busy_shares, say
from tandem_workers.dataset.shards import FailedShard, PixelShard, PrefixShard, ShardPlan, ShardRows
from tandem_workers.stages.ray_data import Span

EXAMPLES = """examples:
  tandem bench pipeline --drafters 8 --refiners 4 --draft-s 1.4 --refine-s 0.7 --batch 64
  tandem bench pipeline --drafters 42 --refiners 22 --draft-s 1.4 --refine-s 0.7 --batch 64 --batches-per-shard 4

Stage times are simulated by sleeping, on simulated GPUs. The last line on stdout is one JSON object with
"efficiency" = shards that the slowest stage made in the window / those that it would make there without a pause. The
window lasts from the last shard of --warm-up to the last of --window; a shard in work at its edges counts in part."""


class BenchPipelineSpec(Spec):
    """Efficiency of the Ray pipeline with simulated stage times, against the bound of its slowest stage."""

    drafters: PositiveInt = Field(8, description="drafter replicas, a simulated GPU each")
    refiners: PositiveInt = Field(4, description="refiner replicas, a simulated GPU each")
    colocated: NonNegativeInt = Field(0, description="more replicas, which hold both models, a simulated GPU each")
    draft_s: PositiveFloat = Field(1.4, description="simulated seconds that a drafter takes for a batch")
    refine_s: PositiveFloat = Field(0.7, description="simulated seconds that a refiner takes for a batch")
    jitter: NonNegativeFloat = Field(0.0, lt=1, description="random spread of the times: uniform within +- this share")
    batch: PositiveInt = Field(64, description="images per batch")
    batches_per_shard: PositiveInt = Field(1, description="batches per shard")
    shards: PositiveInt = Field(520, description="shards of the whole run")
    warm_up: PositiveInt = Field(100, description="completed shards before the measured window")
    window: PositiveInt = Field(400, description="completed shards in the measured window")
    draft_steps: PositiveInt = Field(8, description="N, which sets the size of the prefixes")
    image_size: PositiveInt = Field(256, description="side of the images in pixels")


@dataclass
class Simulated:
    """A stage that waits its simulated time and makes arrays of the real size."""

    name: str
    seconds: float
    jitter: float
    batch: int
    prefix_tokens: int
    image_size: int

    def load(self) -> Simulated:
        return self

    def __call__(self, shard: ShardRows) -> ShardRows:
        began = time.perf_counter()
        made = self.made(shard)
        rng = np.random.default_rng(shard.shard)
        seconds = -(-len(shard) // self.batch) * self.seconds * (1 + self.jitter * rng.uniform(-1, 1))
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        return made

    def made(self, shard: ShardRows) -> ShardRows:
        """With arrays of the real size. A stage's time has this in it, as that of a model has."""
        if self.name == "draft":
            prefix = np.full((len(shard), self.prefix_tokens), shard.shard % 4096, np.uint16)
            return PrefixShard.of(shard, prefix=prefix, draft_steps=1)
        pixels = np.full((len(shard), self.image_size, self.image_size, 3), shard.shard % 256, np.uint8)
        return PixelShard.of(shard, pixels=pixels)


@dataclass(frozen=True)
class Consume:
    """The sink: reads the pixels and drops them."""

    takes: type[ShardRows] = PixelShard

    def __call__(self, shard: PixelShard, spans: list[Span]) -> None:
        now = time.time()
        if int(shard.pixels[-1, -1, -1, -1]) != shard.shard % 256:
            raise AssertionError("pixels of another shard")
        spans.append(Span("consume", "task", now, time.time()))


@dataclass(frozen=True)
class Rows:
    """The first stage: rows with indices only."""

    name = "read"

    plan: ShardPlan

    def load(self) -> Rows:
        return self

    def __call__(self, shard: ShardRows) -> ShardRows:
        index = np.array(self.plan.indices(shard.shard), dtype=np.int64)
        return ShardRows(shard=shard.shard, index=index, label=np.zeros(len(index), np.int32))


def run(spec: BenchPipelineSpec) -> dict[str, Any]:
    """Run, and report. InputError if the window is longer than the run, or for an N that the pyramid does not have."""
    if spec.warm_up + spec.window > spec.shards:
        raise InputError(
            f"--shards: expected --warm-up + --window = {spec.warm_up + spec.window} or more, got {spec.shards}"
        )
    pyramid = Pyramid(PATCH_NUMS_256)
    with as_flag():
        pyramid.check_draft_steps(spec.draft_steps)
    plan = ShardPlan(spec.shards * spec.batch * spec.batches_per_shard, spec.batch * spec.batches_per_shard)
    gpus = spec.drafters + spec.refiners + spec.colocated
    tokens = pyramid.offsets[spec.draft_steps]
    draft, refine = (
        Simulated(name, seconds, spec.jitter, spec.batch, tokens, spec.image_size)
        for name, seconds in (("draft", spec.draft_s), ("refine", spec.refine_s))
    )
    pools = [
        ActorPool(
            "draft",
            ShardRows,
            [Rows(plan), draft],
            spec.drafters + spec.colocated,
            further=[refine],
            finishers=spec.colocated,
        ),
        ActorPool("refine", PrefixShard, [refine], spec.refiners, passes=PixelShard if spec.colocated else None),
    ]
    shard_bytes = plan.shard_size * 3 * spec.image_size**2
    with open_session(None, gpus, 4, wanted_object_store(spec.refiners + spec.colocated, shard_bytes)) as session:
        check_gpus(gpus, session.num_gpus, f"{gpus} replicas")
        say(f"{session.describe()}; stage times are simulated")
        began = time.time()
        ticks: list[tuple[int, int]] = []
        spent: list[CpuSeconds] = []
        done: list[tuple[float, StoredShard]] = []
        pipeline = Pipeline(plan, pools, Consume(), 1, shard_bytes)
        flow = pipeline.flow(plan.num_shards)
        with RunProgress(plan.num_rows, flow=flow) as progress:
            for stored in pipeline.run(list(range(plan.num_shards)), flow):
                if isinstance(stored, FailedShard):
                    raise JobError(f"shard {stored.shard}: {stored.cause}")
                done.append((max(s.end_s for s in stored.spans), stored))
                if len(done) in (spec.warm_up, spec.warm_up + spec.window):
                    ticks.append(cpu_ticks())
                    spent.append(cpu_seconds())
                progress.add(stored.num_rows, stored.spans)
    (idle, total), (idle_after, total_after) = ticks
    cpu = report_cpu(spent[0], spent[1], spec.window)
    cores = {"cores_busy_share": round(1 - (idle_after - idle) / max(1, total_after - total), 3)}
    result = report(spec, began, done) | cores | cpu | flow.summary()
    print_report(result)
    print(json.dumps(result), flush=True)
    return result


def report(spec: BenchPipelineSpec, began: float, done: list[tuple[float, StoredShard]]) -> dict[str, Any]:
    """Efficiency in the window, and of the whole run.

    The slowest stage's own shards are counted: completed ones may have been drafted before the window.
    """
    ends = sorted(end for end, _ in done)
    spans = [span for _, stored in done for span in stored.spans]
    first_start = min(span.start_s for span in spans)
    rates = {"draft": spec.drafters / spec.draft_s, "refine": spec.refiners / spec.refine_s}  # batches a second
    slowest = min(rates, key=lambda stage: (rates[stage], stage == "draft"))
    shard_s = spec.batches_per_shard / (rates[slowest] + spec.colocated / (spec.draft_s + spec.refine_s))
    from_s, to_s = ends[spec.warm_up - 1], ends[spec.warm_up + spec.window - 1]
    window_s = to_s - from_s
    made = sum(share_within(span, from_s, to_s) for span in spans if span.stage == slowest)
    last = max(span.end_s for span in spans if span.stage == "draft")
    images = spec.batch * spec.batches_per_shard
    return {
        "simulated": True,
        "efficiency": round(made * shard_s / window_s, 4),
        "slowest_stage": slowest,
        "images_per_s": round(spec.window * images / window_s, 2),
        "bound_images_per_s": round(images / shard_s, 2),
        "whole_run_efficiency": round(len(ends) * shard_s / (ends[-1] - began), 4),
        "backlog_shards": [backlog(spans, at_s) for at_s in (from_s, to_s)],
        "start_up_s": round(first_start - began, 2),
        "fill_s": round(ends[0] - first_start, 2),
        "drain_s": round(ends[-1] - last, 2),
        "seconds": round(ends[-1] - began, 2),
        "pixels_mb_per_s": round(spec.window * images * 3 * spec.image_size**2 / window_s / 1e6, 1),
        "busy": {stage: values["busy_share"] for stage, values in busy_shares(spans).items()},
        "options": spec.model_dump(mode="json", exclude={"spec"}),
    }


def report_cpu(before: CpuSeconds, after: CpuSeconds, shards: int) -> dict[str, Any]:
    """CPU time for each shard in the window: of the driver, of all processes of this session, and of each kind."""
    by_process = ms_per_shard(before, after, shards)
    return {
        "driver_cpu_ms_per_shard": by_process[DRIVER],
        "cpu_ms_per_shard": round(sum(by_process.values()), 2),
        "cpu_ms_per_shard_by_process": by_process,
    }


def cpu_ticks() -> tuple[int, int]:
    """(idle, total) time of this machine's cores so far. If they were busy throughout, they were the limit."""
    values = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return values[3] + values[4], sum(values)


def backlog(spans: list[Span], at_s: float) -> int:
    """Shards drafted but not refined at a moment. If they get fewer, images are finished faster than drafted."""
    drafted, refined = (sum(s.stage == stage and s.end_s <= at_s for s in spans) for stage in ("draft", "refine"))
    return drafted - refined


def share_within(span: Span, from_s: float, to_s: float) -> float:
    """The share of a stage's work on a shard that was done between two moments."""
    return max(0.0, min(span.end_s, to_s) - max(span.start_s, from_s)) / span.seconds


def print_report(result: dict[str, Any]) -> None:
    table = Table("measure", "value", title="the real pipeline, simulated stage times", show_header=False)
    for name, value in result.items():
        if name != "options":
            table.add_row(name.replace("_", " "), str(value))
    Console(stderr=True).print(table)
