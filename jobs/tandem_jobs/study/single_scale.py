"""`tandem study scales`: Table 4 and figure 3a, one scale by a smaller model and all others by the largest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import Field

from tandem.errors import InputError
from tandem.metrics import Estimate
from tandem_jobs.evaluation.bootstrap import Resampled, mean_of
from tandem_jobs.run.progress import say
from tandem_jobs.study import paper
from tandem_jobs.study.figures import NO_PLOT, can_plot, drawn, with_bars
from tandem_jobs.study.quality import Quality, QualityOptions
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.subject import Setting, Subject
from tandem_jobs.study.training_free import listed
from tandem_workers.models.model_set import EMBEDDED, EMBEDDED_D3

EXAMPLES = """examples:
  tandem study scales --out studies
  tandem study scales --out studies --only-scales 1,2,3 --images 1200
  tandem study scales --out studies --drafter var_d30 --refiner var_d16 --sizes var_d20,var_d24 \\
      --vqvae vae_ch160v4096z32 --features inception --reference VIRTUAL_imagenet256_labeled.npz --images 50000"""
SIZES_LEAST = 3  # over one VQVAE: with two a trend over sizes cannot be seen


class ScalesSpec(QualityOptions):
    """Which scales need the large model: each scale in turn is made by a smaller one."""

    sizes: tuple[str, ...] | None = Field(
        None,
        description="further models over the same VQVAE, as for --refiner, which is always one; default: for the "
        f"embedded models {EMBEDDED_D3}",
    )
    only_scales: tuple[int, ...] | None = Field(None, description="scales, from 1; default: all")


def run(spec: ScalesSpec) -> dict[str, Any]:
    """Measure every scale by every smaller model, and write OUT/scales.json, .md and .png."""
    subject = Subject(spec)
    if spec.draft_steps is not None:
        raise InputError("--draft-steps: expected none, this study has no N")
    scales = chosen_scales(spec, subject)
    roles = smaller_models(spec, subject)
    quality = Quality(subject, spec)
    plain = quality.measured(subject.alone[1])
    rows: list[dict[str, Any]] = []
    costs: dict[str, dict[int, Resampled]] = {}
    for role in roles:
        for scale in scales:
            setting = one_scale(subject, role, scale)
            parameters = subject.configs[role].num_parameters
            head = {"scale": scale, "model": subject.refs[role].label, "role": role, "parameters": parameters}
            measured = quality.measured(setting)
            rows.append(head | quality.json_of(measured, plain, "drafter"))
            costs.setdefault(size_of(rows[-1]), {})[scale] = measured["frechet"].minus(plain["frechet"])
    values = {
        **quality.recipe(),
        "patch_nums": subject.pyramid.patch_nums,
        "drafter": {"parameters": subject.configs["drafter"].num_parameters} | quality.json_of(plain, plain, "drafter"),
        "rows": rows,
    }
    if len(scales) == subject.scales:
        values["early_minus_late"] = {size: early_minus_late(found).estimate for size, found in costs.items()}
    pictures = {"scales": drawn(2, partial(draw, subject, quality, rows), width=5.0)} if can_plot() else {}
    notes = [
        *quality.notes(),
        "A row of the paper stands beside ours where the token map is as large: its scales 1 to 6 have sides of 1 to 6 "
        "too. What a scale adds to the picture differs, as the paper's pyramid goes on to 16 x 16.",
        *([] if pictures else [NO_PLOT]),
    ]
    found = findings(subject.scales, costs)
    heading = "Which scales need the large model"
    return report(
        StudyResult("scales", heading, values, tables(subject, quality, plain, rows), pictures, found, notes), spec.out
    )


def chosen_scales(spec: ScalesSpec, subject: Subject) -> list[int]:
    """InputError naming the flag for a scale that the pyramid does not have."""
    scales = sorted(set(spec.only_scales or range(1, subject.scales + 1)))
    if scales[0] < 1 or scales[-1] > subject.scales:
        raise InputError(f"--only-scales: expected scales from 1 to {subject.scales}, got {spec.only_scales}")
    return scales


def smaller_models(spec: ScalesSpec, subject: Subject) -> list[str]:
    """Roles of the smaller models, smallest first. InputError for one that is not smaller than the drafter."""
    sizes = spec.sizes
    if sizes is None:
        sizes = (EMBEDDED_D3,) if (spec.drafter, spec.refiner) == (EMBEDDED, EMBEDDED) else ()
    for source in sizes:
        subject.add(source, source)
    if len({ref.sha256 for ref in subject.refs.values()}) < len(subject.refs):
        raise InputError(f"--sizes: expected models other than drafter and refiner, each once, got {', '.join(sizes)}")
    roles = sorted((r for r in subject.refs if r != "drafter"), key=lambda r: subject.configs[r].num_parameters)
    if len(roles) + 1 < SIZES_LEAST:
        say(f"{len(roles) + 1} sizes: expected {SIZES_LEAST} or more to see a trend over sizes (--sizes)")
    largest = subject.configs["drafter"].num_parameters
    for role in roles:
        if (found := subject.configs[role].num_parameters) >= largest:
            raise InputError(
                f"expected models smaller than the drafter, {largest / 1e6:.3g} M, got {subject.refs[role].label} of "
                f"{found / 1e6:.3g} M"
            )
    return roles


def one_scale(subject: Subject, role: str, scale: int) -> Setting:
    """Scale k, from 1, by a smaller model; those before and after it by the drafter."""
    parts = (("drafter", scale - 1), (role, scale), ("drafter", subject.scales))
    kept = [part for part, before in zip(parts, (0, scale - 1, scale), strict=True) if part[1] > before]
    return Setting(f"scale-{scale}-{subject.refs[role].sha256[:8]}", tuple(kept))


def size_of(row: dict[str, Any]) -> str:
    return f"{row['parameters'] / 1e6:.3g} M"


def tables(subject: Subject, quality: Quality, plain: Any, rows: list[dict[str, Any]]) -> list[StudyTable]:
    """Table 4 of these models, and its differences beside the paper's."""
    metrics, key = quality.metrics(), quality.key("frechet")
    heads = ("scale", "token map", "model", *map(quality.heading, metrics))
    sides, by_scale = subject.pyramid.patch_nums, sorted(rows, key=lambda row: (row["scale"], row["parameters"]))
    cells: list[list[Cell]] = [
        [row["scale"], f"{(s := sides[row['scale'] - 1])} x {s}", size_of(row), *(row[quality.key(m)] for m in metrics)]
        for row in by_scale
    ]
    largest = f"{subject.configs['drafter'].num_parameters / 1e6:.3g} M"
    cells.append(["all", "", largest, *(plain.estimate(m) for m in metrics)])
    sizes = sorted({row["parameters"] for row in rows})
    columns = ("scale", *(f"by {size / 1e6:.3g} M" for size in sizes), *(f"paper: by {size}" for size in paper.SIZES))
    beside: list[list[Cell]] = []
    for scale in sorted({row["scale"] for row in rows}):
        own = {row["parameters"]: row["minus_drafter"][key] for row in rows if row["scale"] == scale}
        fids = paper.ONE_SCALE.get(scale) if sides[scale - 1] == scale else None
        theirs: list[Cell] = [round(fid - paper.DRAFTER.fid, 2) for fid in fids] if fids else [None] * len(paper.SIZES)
        beside.append([scale, *(own[size] for size in sizes), *theirs])
    title = f"{quality.heading('frechet')} minus that of the largest model at all scales; the paper's FID (Table 4)"
    return [StudyTable("One scale by a smaller model", heads, cells), StudyTable(title, columns, beside)]


def findings(scales: int, costs: Mapping[str, Mapping[int, Resampled]]) -> list[str]:
    """Where a smaller model costs beyond the interval, by its size, and whether early scales cost more."""
    lines = []
    for size, by_scale in costs.items():
        found = {scale: cost.estimate for scale, cost in by_scale.items()}
        needed = [scale for scale, cost in found.items() if cost.low > 0]
        better = [scale for scale, cost in found.items() if cost.high < 0]
        most = max(found, key=lambda scale: found[scale].value)
        lines.append(
            f"In the place of the model of {size} the large one is needed, beyond the interval, at "
            f"{f'scale {listed(needed)}' if needed else 'no scale'}"
            f"{f'; at scale {listed(better)} the smaller one is better' if better else ''}. The smaller one costs most "
            f"at scale {most} of {scales}: {found[most]}."
        )
        if len(found) == scales:
            lines.append(agreement_with_paper(early_minus_late(by_scale).estimate, size))
    return lines


def early_minus_late(by_scale: Mapping[int, Resampled]) -> Resampled:
    """Mean cost of a scale in the first half minus that in the last; with an odd number the middle one is in none."""
    costs = [by_scale[scale] for scale in sorted(by_scale)]
    half = len(costs) // 2
    return mean_of(costs[:half]).minus(mean_of(costs[-half:]))


def agreement_with_paper(difference: Estimate, size: str) -> str:
    """The paper's claim: early scales need the large model more than late ones."""
    theirs = [fids[0] - paper.DRAFTER.fid for fids in paper.ONE_SCALE.values()]
    verdict = "within its interval of 0: no trend shows, neither the paper's nor its opposite"
    if difference.low > 0:
        verdict = "early scales need the large model more, as the paper claims"
    elif difference.high < 0:
        verdict = "late scales need the large model more, the other way round than the paper claims"
    return (
        f"With {size}, a scale of the first half costs {difference} more than one of the last half: {verdict} (its "
        f"0.3 B model costs {sum(theirs[:4]) / 4:.2f} at scales 2 to 5, {sum(theirs[-4:]) / 4:.2f} at 7 to 10)."
    )


def draw(subject: Subject, quality: Quality, rows: list[dict[str, Any]], ours: Any, papers: Any) -> None:
    """The cost of a smaller model at each scale; the paper's in the second panel."""
    key = quality.key("frechet")
    for role in dict.fromkeys(row["role"] for row in rows):
        own = [row for row in rows if row["role"] == role]
        x, costs = [float(row["scale"]) for row in own], [row["minus_drafter"][key] for row in own]
        with_bars(ours, x, costs, marker="o", label=size_of(own[0]))
    ours.axhline(0, color="black", linewidth=0.8)
    ours.set(
        title="these models", xlabel="scale by the smaller model", ylabel=f"{quality.heading('frechet')}, difference"
    )
    ours.legend()
    for size, fids in zip(paper.SIZES, zip(*paper.ONE_SCALE.values(), strict=True), strict=True):
        beyond = [fid - paper.DRAFTER.fid for fid in fids]
        papers.plot(list(paper.ONE_SCALE), beyond, marker="o", linewidth=1.2, label=size)
    papers.axhline(0, color="black", linewidth=0.8)
    papers.set(title="the paper: VAR-d30 at all others", xlabel="scale by the smaller model", ylabel="FID, difference")
    papers.legend()
