"""`tandem study tradeoff`: Table 1 and figure 5a, quality against speed, memory and parameters.

Quality is that of `training-free`, whose token ids and features are used again; speed is timed as in `latency`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field, PositiveInt

from tandem.counting.roofline import PAPER_BATCH, PAPER_SPEED
from tandem.metrics import Estimate
from tandem_jobs.bench.decode_timing import Bench
from tandem_jobs.bench.decode_timing import Setting as Timed
from tandem_jobs.bench.repeated import median_of
from tandem_jobs.study import paper
from tandem_jobs.study.bench_runs import open_bench
from tandem_jobs.study.figures import NO_PLOT, can_plot, drawn
from tandem_jobs.study.latency import REFINER, timed
from tandem_jobs.study.memory_use import counted_row
from tandem_jobs.study.quality import Measured, Quality, QualityOptions, chosen, model_sizes
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.subject import Setting, Subject
from tandem_jobs.study.training_free import draft_steps_of, listed, name_of

EXAMPLES = """examples:
  tandem study tradeoff --out studies
  tandem study tradeoff --out studies --draft-steps 4,5,6 --repeats 10"""
MB = 1e6
METRICS = ("frechet", "classifier_score", "precision", "recall")


class TradeoffSpec(QualityOptions):
    """Quality, speed, memory and parameters of drafter, refiner and CoDe at every N."""

    repeats: PositiveInt = Field(6, description="timed runs of each setting, in rounds over all settings")


def run(spec: TradeoffSpec) -> dict[str, Any]:
    """Measure quality and speed, and write OUT/tradeoff.json, .md and .png."""
    subject = Subject(spec)
    quality = Quality(subject, spec)
    settings = subject.settings()
    found = chosen(quality, settings)
    bench = open_bench(spec, spec.repeats)
    bench.sampling = subject.sampling
    rows = [row_of(quality, s, found, speeds) for speeds in [timings(bench, spec.batch, settings)] for s in settings]
    values = {**quality.recipe(), "repeats": spec.repeats, "settings": {row["setting"]: row for row in rows}}
    pictures = {"tradeoff": drawn(2, partial(draw, quality, rows), width=5.0)} if can_plot() else {}
    notes = [
        *quality.notes(),
        f"Speed at batch {spec.batch} without VQVAE decode, as in the paper: the median of {spec.repeats} runs and "
        "their range. The speed-up is over the drafter alone in the same round. Memory is counted: weights of the "
        "models in use and of the VQVAE, KV cache and activations of drafting and refining. The paper's rows are those "
        "with as many scales left to the refiner, K - N, on an L20 at batch 64, its FID without fine-tuning.",
        *([] if pictures else [NO_PLOT]),
    ]
    tables = [own_table(quality, subject, settings, rows), paper_table(quality, subject, rows)]
    heading = "Quality against speed"
    return report(StudyResult("tradeoff", heading, values, tables, pictures, findings(quality, rows), notes), spec.out)


def timings(bench: Bench, batch: int, settings: list[Setting]) -> dict[str, dict[str, Any]]:
    """Speed and counted memory of every setting, by its name."""
    of = {s.name: Timed(REFINER if s.name == "refiner" else draft_steps_of(s), batch) for s in settings}
    bench.settings = list(of.values())
    runs = timed(bench)
    seconds = {s: [run["draft_s"] + run["refine_s"] for run in runs[s]] for s in bench.settings}
    plain = seconds[of["drafter"]]
    return {
        name: {
            "images_per_s": median_of([batch / s for s in seconds[setting]]),
            "images_per_s_with_decode": median_of([batch / sum(stages(run)) for run in runs[setting]]),
            "speed_up": median_of([theirs / ours for theirs, ours in zip(plain, seconds[setting], strict=True)]),
            "memory_bytes": counted_row(bench, setting, bench.device)["total_bytes"],
        }
        for name, setting in of.items()
    }


def stages(run: dict[str, Any]) -> tuple[float, float, float]:
    return run["draft_s"], run["refine_s"], run["decode_s"]


def row_of(
    quality: Quality, setting: Setting, found: dict[str, Measured], speeds: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """All that is known of a setting."""
    subject, steps = quality.subject, draft_steps_of(setting)
    theirs = None if setting.name == "drafter" or not steps else paper.same_left(subject.scales - steps)
    return {
        "setting": setting.name,
        "draft_steps": steps,
        "steps": f"{steps}+{subject.scales - steps}" if steps else str(subject.scales),
        "parameters": [subject.configs[role].num_parameters for role, _ in setting.parts],
        **speeds[setting.name],
        **quality.json_of(found[setting.name], found["drafter"], "drafter"),
        "paper_draft_steps": theirs,
    }


def own_table(quality: Quality, subject: Subject, settings: list[Setting], rows: list[dict[str, Any]]) -> StudyTable:
    """Table 1 of these models."""
    metrics = [metric for metric in METRICS if metric in quality.metrics()]
    heads = ("setting", "steps", "parameters", "images/s", "speed-up", "memory MB")
    cells: list[list[Cell]] = []
    for setting, row in zip(settings, rows, strict=True):
        speed: list[Cell] = [row["images_per_s"], row["speed_up"], round(row["memory_bytes"] / MB)]
        scores = [row[quality.key(metric)] for metric in metrics]
        cells.append([name_of(subject, setting), row["steps"], model_sizes(subject, setting), *speed, *scores])
    return StudyTable("These models", (*heads, *map(quality.heading, metrics)), cells)


def paper_table(quality: Quality, subject: Subject, rows: list[dict[str, Any]]) -> StudyTable:
    """What CoDe gains and costs beside the drafter alone, ours and the paper's."""
    frechet, memory = quality.key("frechet"), {row["setting"]: row["memory_bytes"] for row in rows}
    heads = ("left (K - N)", "speed-up", "memory, share", f"{quality.heading('frechet')} beyond")
    papers = ("paper's N of 10", "speed-up", "memory, share", "FID beyond", "fine-tuned")
    cells: list[list[Cell]] = []
    for row in sorted((row for row in rows if row["draft_steps"]), key=lambda row: -row["draft_steps"]):
        share = round(row["memory_bytes"] / memory["drafter"], 3)
        ours: list[Cell] = [subject.scales - row["draft_steps"], row["speed_up"], share, row["minus_drafter"][frechet]]
        cells.append([*ours, *paper_cells(row["paper_draft_steps"])])
    return StudyTable("Beside the drafter alone: these models and the paper's (Tables 1 and 6)", heads + papers, cells)


def paper_cells(n: int | None) -> list[Cell]:
    """Cells of the paper's row of N; speed, memory and fine-tuned FID are published for the largest N alone."""
    if n is None:
        return [None] * 5
    speed, megabytes, tuned = PAPER_SPEED.get(n), paper.MEMORY_MB.get(n), paper.FINE_TUNED.get(n)
    plain = paper.DRAFTER.fid
    return [
        n,
        speed[1] if speed else None,
        round(megabytes / paper.MEMORY_MB[None], 3) if megabytes else None,
        round(paper.TRAINING_FREE[n].fid - plain, 2),
        round(tuned.fid - plain, 2) if tuned else None,
    ]


def findings(quality: Quality, rows: list[dict[str, Any]]) -> list[str]:
    """The fastest N whose quality is within its interval of the drafter's, and what the others cost."""
    frechet, name = quality.key("frechet"), quality.heading("frechet")
    codes = [row for row in rows if row["draft_steps"]]
    free = [row for row in codes if row["minus_drafter"][frechet].low <= 0]
    best = max(codes, key=lambda row: row["images_per_s"].value)
    lines = [
        f"CoDe at N = {best['draft_steps']} is {best['speed_up']} times as fast as the drafter alone, at a {name} "
        f"higher by {best['minus_drafter'][frechet]}."
    ]
    if free:
        fastest = max(free, key=lambda row: row["images_per_s"].value)
        lines.append(
            f"No loss beyond its interval: N = {listed([row['draft_steps'] for row in free])}; the fastest of them is "
            f"{fastest['speed_up']} times as fast as the drafter alone."
        )
    else:
        lines.append("At every N the loss is beyond its interval; the paper, without intervals, has 0.04 at K - N = 1.")
    return lines


def draw(quality: Quality, rows: list[dict[str, Any]], ours: Any, papers: Any) -> None:
    """The distance over images a second, with both intervals; the paper's in the second panel."""
    for row in rows:
        speed, distance = row["images_per_s"], row[quality.key("frechet")]
        bars = {"xerr": bars_of(speed), "yerr": bars_of(distance)}
        ours.errorbar(speed.value, distance.value, fmt="o", capsize=2, **bars)
        label = f"N = {row['draft_steps']}" if row["draft_steps"] else row["setting"]
        ours.annotate(label, (speed.value, distance.value), xytext=(4, 4), textcoords="offset points")
    ours.margins(x=0.12)
    ours.set(title="these models", xlabel="images/s", ylabel=quality.heading("frechet"))
    for n, (images_per_s, _) in PAPER_SPEED.items():
        fid = paper.TRAINING_FREE[n].fid if n else paper.DRAFTER.fid
        papers.plot(images_per_s, fid, "o", color="tab:orange")
        papers.annotate(f"N = {n}" if n else "d30", (images_per_s, fid), xytext=(4, 4), textcoords="offset points")
    papers.margins(x=0.12, y=0.1)
    papers.set(title=f"the paper: batch {PAPER_BATCH}, L20, no fine-tuning", xlabel="images/s", ylabel="FID")


def bars_of(estimate: Estimate) -> list[list[float]]:
    """Lengths below and above."""
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
