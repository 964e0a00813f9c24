"""`tandem study latency`: figures 5b and 5c of the paper, latency by batch and seconds of each scale."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field, PositiveInt

from tandem.counting.roofline import PAPER_BATCH, PAPER_SPEED
from tandem.metrics import Estimate
from tandem_jobs.bench.bench_decode import order
from tandem_jobs.bench.decode_timing import Bench, Setting
from tandem_jobs.bench.repeated import median_of
from tandem_jobs.run.progress import say
from tandem_jobs.study.bench_runs import draft_steps_of, open_bench, recipe
from tandem_jobs.study.figures import NO_PLOT, can_plot, drawn, with_bars
from tandem_jobs.study.paper import same_left
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.study_options import StudyOutput

EXAMPLES = """examples:
  tandem study latency --out studies
  tandem study latency --out studies --draft-steps 3,4,5,6 --batches 1,64"""
REFINER = 0  # draft steps of the refiner alone
Runs = dict[Setting, list[dict[str, Any]]]


class LatencySpec(StudyOutput):
    """Latency of plain VAR, CoDe and VQVAE decode by batch, and seconds of each scale for drafter and refiner."""

    draft_steps: tuple[PositiveInt, ...] | None = Field(
        None, description="values of N; default: 6, the paper's, of 10 scales, else 0.7 K"
    )
    batches: tuple[PositiveInt, ...] = Field((1, 2, 4, 8, 16, 32, 64), description="images per batch")
    repeats: PositiveInt = Field(6, description="timed runs of each setting, in rounds over all settings")


def run(spec: LatencySpec) -> dict[str, Any]:
    """Time all settings in rounds, and write the report."""
    bench = open_bench(spec, spec.repeats)
    steps = sorted({draft_steps_of(n, bench) for n in spec.draft_steps or (None,)})
    batches = sorted(set(spec.batches))
    settings = [Setting(n, batch) for batch in batches for n in (None, *steps)]
    bench.settings = [*settings, Setting(REFINER, batches[-1])]
    runs = timed(bench)
    rows = [row_of(setting, runs) for setting in settings]
    scales = scale_seconds(runs, batches[-1])
    values = {**recipe(bench), "repeats": spec.repeats, "device": bench.device.type, "rows": rows}
    values["scale_s"] = {"batch": batches[-1], "patch_nums": bench.pyramid.patch_nums, **scales}
    tables = [latency_table(rows, bench.pyramid.num_scales)]
    if scales["drafter"]:
        tables.append(scale_table(bench, batches[-1], scales))
    pictures = {"latency": drawn(2, partial(draw, rows, scales), width=5.0)} if can_plot() else {}
    notes = [
        f"Medians of {spec.repeats} runs, in brackets the smallest and the largest: with six or more runs at least a "
        "95 % interval of the median. Settings take turns, so that a slow minute of the machine affects all; the first "
        "round does not count. The speed-up is of each round. Latency is drafting and refining, as in the paper; VQVAE "
        "decode, which follows, has a column of its own. Seconds of a scale are those of plain VAR by either model.",
        *(
            []
            if scales["drafter"]
            else ["CUDA graphs launch a stage at once: --no-cuda-graphs gives seconds of a scale."]
        ),
        *([] if pictures else [NO_PLOT]),
    ]
    found = findings(rows, scales, bench.pyramid.num_scales)
    return report(
        StudyResult("latency", "Latency by batch and by scale", values, tables, pictures, found, notes), spec.out
    )


def timed(bench: Bench) -> Runs:
    """The runs of each setting that count."""
    runs: Runs = {setting: [] for setting in bench.settings}
    if not bench.launches_stages:
        for setting in bench.settings:
            bench.times(setting)
    for setting, counts in order(bench):
        one = bench.times(setting)
        if counts:
            runs[setting].append(one)
            seconds = one["draft_s"] + one["refine_s"]
            say(f"run {len(runs[setting])}, {setting.name}, batch {setting.batch}: {seconds:.3f} s")
    return runs


def row_of(setting: Setting, runs: Runs) -> dict[str, Any]:
    """Seconds of a setting, and its speed-up over plain VAR in the same round."""
    own, plain = runs[setting], runs[Setting(None, setting.batch)]
    seconds, plain_s = ([run["draft_s"] + run["refine_s"] for run in found] for found in (own, plain))
    return {
        "setting": setting.name if setting.draft_steps is None else f"CoDe {setting.name}",
        "draft_steps": setting.draft_steps,
        "batch": setting.batch,
        "latency_s": median_of(seconds),
        **{name: median_of([run[name] for run in own]) for name in ("draft_s", "refine_s", "decode_s")},
        "images_per_s": median_of([setting.batch / s for s in seconds]),
        "speed_up": median_of([theirs / ours for theirs, ours in zip(plain_s, seconds, strict=True)]),
    }


def scale_seconds(runs: Runs, batch: int) -> dict[str, list[Estimate]]:
    """Seconds of each scale of drafter and refiner, each alone. Empty if CUDA graphs launch a whole stage."""
    settings = {"drafter": Setting(None, batch), "refiner": Setting(REFINER, batch)}
    return {
        role: [median_of(times) for times in zip(*(run["scale_s"] for run in runs[setting]), strict=True)]
        for role, setting in settings.items()
    }


def paper_speed(draft_steps: int | None, num_scales: int) -> tuple[float, float] | None:
    """The paper's latency in seconds at batch 64 on an L20, and speed-up: of as many scales left to the refiner."""
    n = None if draft_steps is None else same_left(num_scales - draft_steps)
    if (draft_steps is not None and n is None) or n not in PAPER_SPEED:
        return None
    images_per_s, speed_up = PAPER_SPEED[n]
    return PAPER_BATCH / images_per_s, speed_up


def latency_table(rows: list[dict[str, Any]], num_scales: int) -> StudyTable:
    columns = ("setting", "batch", "latency ms", "VQVAE decode ms", "images/s", "speed-up", "paper: s", "speed-up")
    cells: list[list[Cell]] = []
    for row in rows:
        paper = paper_speed(row["draft_steps"], num_scales) if row["batch"] == PAPER_BATCH else None
        theirs: list[Cell] = [round(value, 2) for value in paper] if paper else [None, None]
        times = [in_ms(row[name]) for name in ("latency_s", "decode_s")]
        cells.append([row["setting"], row["batch"], *times, row["images_per_s"], row["speed_up"], *theirs])
    title = "Latency of drafting and refining; the paper: d30 + d16 on an L20 with as many scales left to the refiner"
    return StudyTable(title, columns, cells)


def scale_table(bench: Bench, batch: int, scales: dict[str, list[Estimate]]) -> StudyTable:
    cells: list[list[Cell]] = [
        [scale, f"{side} x {side}", in_ms(drafter), in_ms(refiner), round(drafter.value / refiner.value, 2)]
        for scale, (side, drafter, refiner) in enumerate(
            zip(bench.pyramid.patch_nums, scales["drafter"], scales["refiner"], strict=True), 1
        )
    ]
    columns = ("scale", "token map", "drafter ms", "refiner ms", "drafter / refiner")
    return StudyTable(f"Each scale at batch {batch}", columns, cells)


def in_ms(seconds: Estimate) -> Estimate:
    return Estimate(*(1e3 * value for value in (seconds.value, seconds.low, seconds.high)))


def findings(rows: list[dict[str, Any]], scales: dict[str, list[Estimate]], num_scales: int) -> list[str]:
    """Speed-up at the ends of the range of batches, share of VQVAE decode, and where a scale's time goes."""
    codes = [row for row in rows if row["draft_steps"] == min(r["draft_steps"] for r in rows if r["draft_steps"])]
    first, last = codes[0], codes[-1]
    sentences = [
        f"{last['setting']} is {last['speed_up']} times as fast as plain VAR at batch {last['batch']}, and "
        f"{first['speed_up']} times at batch {first['batch']}."
    ]
    if paper := paper_speed(last["draft_steps"], num_scales):
        sentences.append(f"The paper has {paper[1]} with as many scales left to the refiner (batch 64, d30 and d16).")
    decode = last["decode_s"].value / last["latency_s"].value
    sentences.append(f"VQVAE decode takes {decode:.2f} of the latency of {last['setting']} at batch {last['batch']}.")
    if scales["drafter"]:
        ratios = [d.value / r.value for d, r in zip(scales["drafter"], scales["refiner"], strict=True)]
        share = scales["drafter"][-1].value / sum(one.value for one in scales["drafter"])
        sentences.append(
            f"The refiner makes the last scale {ratios[-1]:.1f} times as fast as the drafter, and the first "
            f"{ratios[0]:.1f} times; the last scale is {share:.2f} of the drafter's time."
        )
    return sentences


def draw(rows: list[dict[str, Any]], scales: dict[str, list[Estimate]], by_batch: Any, by_scale: Any) -> None:
    """Latency by batch with VQVAE decode, and milliseconds of each scale."""
    names = list(dict.fromkeys(row["setting"] for row in rows))
    for name in names:
        own = [row for row in rows if row["setting"] == name]
        with_bars(by_batch, [row["batch"] for row in own], [row["latency_s"] for row in own], marker="o", label=name)
    last = [row for row in rows if row["setting"] == names[-1]]
    batches = [row["batch"] for row in last]
    with_bars(by_batch, batches, [row["decode_s"] for row in last], marker="s", linestyle="--", label="VQVAE decode")
    by_batch.set(title="seconds a batch", xlabel="images per batch", xscale="log", yscale="log")
    by_batch.set_xticks(batches, [str(batch) for batch in batches], minor=False)
    by_batch.minorticks_off()
    by_batch.legend()
    for role, seconds in scales.items():
        with_bars(by_scale, list(range(1, len(seconds) + 1)), [in_ms(one) for one in seconds], marker="o", label=role)
    by_scale.set(title=f"milliseconds of a scale at batch {rows[-1]['batch']}", xlabel="scale")
    by_scale.legend()
