"""`tandem study memory`: Table 3 of the paper, weights, KV cache and activations of plain VAR and CoDe by batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pydantic import Field, PositiveInt

from tandem_jobs.bench.decode_report import MIB, PAPER_DRAFT_STEPS, PAPER_MEMORY, PaperMemory
from tandem_jobs.bench.decode_timing import Bench, Setting
from tandem_jobs.bench.peak_memory import reset_resident, resident_bytes
from tandem_jobs.run.progress import say
from tandem_jobs.study.bench_runs import draft_steps_of, open_bench, recipe
from tandem_jobs.study.figures import NO_PLOT, can_plot, drawn
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.study_options import StudyOutput

EXAMPLES = """examples:
  tandem study memory --out studies
  tandem study memory --out studies --measure
  tandem study memory --out studies --drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights"""
PARTS = {"weights": "weight_bytes", "KV cache": "kv_bytes", "running": "activation_bytes"}
COLOURS = ("#4c72b0", "#dd8452", "#55a868")


class MemorySpec(StudyOutput):
    """Memory of plain VAR and of CoDe by batch, counted without loading anything: weights, KV cache, activations."""

    draft_steps: PositiveInt | None = Field(None, description="N; default: 6, the paper's, of 10 scales, else 0.7 K")
    batches: tuple[PositiveInt, ...] = Field(tuple(PAPER_MEMORY), description="images per batch")
    measure: bool = Field(
        False,
        description="also load the models and measure the peak of resident memory; everything is then counted for the "
        "device of this machine, else for a GPU",
    )


def run(spec: MemorySpec) -> dict[str, Any]:
    """Count, measure if asked, and write the report."""
    bench = open_bench(spec, counted=not spec.measure)
    device = bench.device if spec.measure else torch.device("cuda")
    draft_steps = draft_steps_of(spec.draft_steps, bench)
    rows: list[dict[str, Any]] = []
    before = loaded_bytes(bench) if spec.measure else None
    for batch in sorted(set(spec.batches)):
        for setting in (Setting(None, batch), Setting(draft_steps, batch)):
            row = counted_row(bench, setting, device)
            row["resident_bytes"] = bench.times(setting)["resident_bytes"] if spec.measure else None
            rows.append(row)
            say(f"{row['setting']}, batch {batch}: {row['total_bytes'] / MIB:,.1f} MiB")
    kind = "GPU" if device.type == "cuda" else "CPU"
    values = {**recipe(bench), "draft_steps": draft_steps, "counted_for": kind, "loaded_bytes": before, "rows": rows}
    pictures = {"memory": drawn(2, partial(draw, rows), width=5.4)} if can_plot() else {}
    notes = [*explanations(bench, kind, before), *([] if pictures else [NO_PLOT])]
    heading = f"Memory of plain VAR and CoDe at N = {draft_steps}"
    return report(
        StudyResult("memory", heading, values, [table(rows, kind)], pictures, findings(rows), notes), spec.out
    )


def loaded_bytes(bench: Bench) -> int:
    """Resident bytes with all models loaded, before anything is decoded."""
    reset_resident(bench.device)
    return resident_bytes(bench.device)


def counted_row(bench: Bench, setting: Setting, device: torch.device) -> dict[str, Any]:
    """Counted bytes of a setting, as the paper divides them: cache and activations are those of the transformer stage
    that needs the most. VQVAE decode comes after it and is counted apart, as the paper leaves it out."""
    stages = bench.stage_bytes(setting, device)
    on_host = device.type == "cpu"
    weights = sum(stage.weights + (stage.host if on_host else 0) for stage in stages.values())
    decode = stages.pop("decode").activations
    peak = max(stages.values(), key=lambda stage: stage.cache + stage.activations)
    total = weights + peak.cache + peak.activations
    plain = setting.draft_steps is None
    found = PAPER_MEMORY.get(setting.batch)
    return {
        "setting": setting.name if plain else f"CoDe {setting.name}",
        "batch": setting.batch,
        "weight_bytes": weights,
        "kv_bytes": peak.cache,
        "activation_bytes": peak.activations,
        "total_bytes": total,
        "decode_activation_bytes": decode,
        "total_with_decode_bytes": max(total, weights + decode),
        "paper_mib": vars(paper) if found and (paper := found[0 if plain else 1]) else None,
    }


def table(rows: list[dict[str, Any]], kind: str) -> StudyTable:
    """Ours, in brackets the paper's at the same batch."""
    measured = rows[0]["resident_bytes"] is not None
    ours = {**PARTS, "total": "total_bytes"}
    papers = ("weights", "cache", "running", "total")
    cells: list[list[Cell]] = []
    for row in rows:
        paper = row["paper_mib"]
        sizes: list[Cell] = [
            f"{in_mib(row[name])} ({paper[theirs]})" if paper else in_mib(row[name])
            for name, theirs in zip(ours.values(), papers, strict=True)
        ]
        last = [row["total_with_decode_bytes"], *([row["resident_bytes"]] if measured else [])]
        cells.append([row["setting"], row["batch"], *sizes, *map(in_mib, last)])
    heads = ("setting", "batch", *ours, "with decode", *(("resident",) if measured else ()))
    title = f"MiB, counted for a {kind}; in brackets the paper's: VAR-d30, and CoDe with d16 at N = 6"
    return StudyTable(title, heads, cells)


def in_mib(size: int) -> str:
    """MiB, with a digit behind the point if there are few."""
    return f"{size / MIB:.{0 if size >= 100 * MIB else 1}f}"


def findings(rows: list[dict[str, Any]]) -> list[str]:
    """What CoDe saves at the largest batch that the paper has for both, else at the largest."""
    batches = {row["batch"] for row in rows}
    known = [batch for batch in batches if (PAPER_MEMORY.get(batch) or (None,))[0] is not None]
    batch = max(known or batches)
    plain, code = (row for row in rows if row["batch"] == batch)
    total, cache = code["total_bytes"] / plain["total_bytes"], code["kv_bytes"] / plain["kv_bytes"]
    text = f"At batch {batch} {code['setting']} needs {total:.2f} of plain VAR's bytes, and {cache:.2f} of its KV cache"
    paper = PAPER_MEMORY.get(batch)
    if paper and paper[0]:
        theirs = paper[1].total / paper[0].total, paper[1].cache / paper[0].cache
        text += f"; the paper: {theirs[0]:.2f} and {theirs[1]:.2f} (d30 with d16, N = {PAPER_DRAFT_STEPS})"
    if code["total_bytes"] < plain["total_bytes"]:
        return [f"{text}."]
    return [f"{text}.", "CoDe saves nothing here: the weights of a second model outweigh the cache that it saves."]


def explanations(bench: Bench, kind: str, before: int | None) -> list[str]:
    """How the numbers come about."""
    notes = [
        f"Counted in {bench.dtype_name}, from the decode itself on tensors without memory. Running: the peak of all "
        "tensors but weights and KV cache, of the stage that needs the most. The paper's weights are float32, its "
        "cache holds all scales (K in float32, V in 16 bits), and its MB are MiB. Both count the VQVAE's weights and "
        "leave out its decode; the column with decode has it.",
    ]
    if kind == "GPU":
        notes.append("A GPU is counted with plain kernels and without CUDA graphs.")
    if before is not None:
        notes.append(
            f"Resident: the peak of the process with all three models loaded, VQVAE decode included; "
            f"{before / MIB:,.0f} MiB of it were there before the first batch."
        )
    return notes


def draw(rows: list[dict[str, Any]], ours: Any, papers: Any) -> None:
    """Stacked bars, plain VAR and CoDe side by side at each batch; the paper's in the second panel."""
    names = [f"{'CoDe' if row['setting'].startswith('CoDe') else 'VAR'}\n{row['batch']}" for row in rows]
    stack(ours, names, [[row[name] / MIB for name in PARTS.values()] for row in rows])
    ours.set(title="these models", ylabel="MiB")
    known = [
        (f"{name}\n{batch}", row)
        for batch, pair in PAPER_MEMORY.items()
        for name, row in zip(("VAR", "CoDe"), pair, strict=True)
    ]
    stack(papers, [name for name, _ in known], [parts_of(row) for _, row in known])
    papers.set(title="the paper: d30, d30 + d16 at N = 6")


def parts_of(row: PaperMemory | None) -> list[float]:
    """In the order of `PARTS`; nothing where VAR ran out of memory."""
    return [row.weights, row.cache, row.running] if row else [0.0, 0.0, 0.0]


def stack(axes: Any, names: list[str], bars: list[list[float]]) -> None:
    bottom = [0.0] * len(bars)
    for part, (label, colour) in enumerate(zip(PARTS, COLOURS, strict=True)):
        heights = [bar[part] for bar in bars]
        axes.bar(names, heights, bottom=bottom, label=label, color=colour)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.legend()
    axes.tick_params(axis="x", labelsize=7)
