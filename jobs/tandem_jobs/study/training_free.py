"""`tandem study training-free`: Tables 2 and 6 and figure 3c, quality of refiner, CoDe at every N, and drafter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tandem.metrics import nearest, share
from tandem.training.pictures import PictureSet
from tandem.training.vqvae_task import psnr, reconstruct
from tandem.vqvae import to_float
from tandem_jobs.study import paper
from tandem_jobs.study.figures import NO_PLOT, can_plot, drawn, with_bars
from tandem_jobs.study.quality import Measured, Quality, QualityOptions, chosen
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.sheets import nearest_sheet
from tandem_jobs.study.subject import Setting, Subject
from tandem_workers.features.extractors import LOGITS

EXAMPLES = """examples:
  tandem study training-free --out studies                                the embedded models and their pictures
  tandem study training-free --out studies --images 240 --draft-steps 3,5 --cfg 2
  tandem study training-free --out studies --drafter var_d30 --refiner var_d16 --vqvae vae_ch160v4096z32 \\
      --features inception --reference VIRTUAL_imagenet256_labeled.npz --images 50000 --batch 64"""
SHEET_ROWS = 2
LOOKED_AT = 2400  # images whose nearest training picture is looked for
COLOURS = 256  # of a sheet: a quarter of the bytes, and no difference to the eye


class TrainingFreeSpec(QualityOptions):
    """Measure the quality of drafter, refiner and CoDe at every N, without fine-tuning, on the same seeds."""


def run(spec: TrainingFreeSpec) -> dict[str, Any]:
    """Make the images that are missing, measure them, and write OUT/training-free.json, .md and the pictures."""
    subject = Subject(spec)
    quality = Quality(subject, spec)
    settings = subject.settings()
    found = chosen(quality, settings)
    values = {
        **quality.recipe(),
        "settings": {
            s.name: {
                "draft_steps": draft_steps_of(s),
                **quality.json_of(found[s.name], found["drafter"], "drafter"),
                "paper": vars(theirs) if (theirs := paper_row(subject, s)) else None,
            }
            for s in settings
        },
    }
    pictures = {"training-free": drawn(2, lambda *axes: draw(subject, quality, found, *axes))} if can_plot() else {}
    if quality.real.splits is not None:
        code = subject.code(best_known(subject))
        values |= of_splits(quality, code, quality.real.splits)
        pictures["nearest"] = nearest_pictures(subject, code, quality.real.splits[0])
    notes = [*quality.notes(), *sentences(values), *([] if can_plot() else [NO_PLOT])]
    tables = [own_table(quality, subject, found), paper_table(quality, subject, found)]
    heading = "Training-free collaborative decoding: quality at every N"
    return report(
        StudyResult("training-free", heading, values, tables, pictures, findings(quality, subject, found), notes),
        spec.out,
    )


def draft_steps_of(setting: Setting) -> int | None:
    """N of a setting of CoDe."""
    return setting.parts[0][1] if len(setting.parts) > 1 else None


def best_known(subject: Subject) -> int:
    """The default N if it was asked for, else the largest: whose samples are looked at more closely."""
    default = subject.pyramid.default_draft_steps
    return default if default in subject.steps else max(subject.steps)


def paper_row(subject: Subject, setting: Setting) -> paper.Quality | None:
    """The paper's figures with as many scales left to the refiner."""
    if setting.name == "drafter":
        return paper.DRAFTER
    draft_steps = draft_steps_of(setting)
    found = paper.same_left(subject.scales - draft_steps) if draft_steps else None
    return paper.TRAINING_FREE[found] if found else None


def name_of(subject: Subject, setting: Setting) -> str:
    """In tables: "CoDe, N = 5 of 7"."""
    draft_steps = draft_steps_of(setting)
    return f"CoDe, N = {draft_steps} of {subject.scales}" if draft_steps else f"{setting.name} alone"


def own_table(quality: Quality, subject: Subject, found: Mapping[str, Measured]) -> StudyTable:
    """All metrics of ours."""
    metrics, drafter = quality.metrics(), found["drafter"]
    columns = ("setting", *(quality.heading(m) for m in metrics), f"{quality.heading('frechet')} minus the drafter's")
    rows: list[list[Cell]] = []
    for setting in subject.settings():
        measured = found[setting.name]
        difference = None if setting.name == "drafter" else measured.minus(drafter, "frechet")
        rows.append([name_of(subject, setting), *(measured.estimate(m) for m in metrics), difference])
    return StudyTable("Quality of every setting", columns, rows)


def paper_table(quality: Quality, subject: Subject, found: Mapping[str, Measured]) -> StudyTable:
    """Differences to the drafter alone, ours and the paper's, by the number of scales left to the refiner."""
    metrics = [m for m in ("frechet", "classifier_score", "precision", "recall") if m in quality.metrics()]
    heads = ("left (K - N)", *map(quality.heading, metrics))
    columns = (*heads, "paper's N of 10", "FID", "FID", "IS", "precision", "recall")
    fields = ("fid", "inception_score", "precision", "recall")
    rows: list[list[Cell]] = []
    for steps in sorted(subject.steps, reverse=True):
        theirs = paper.same_left(subject.scales - steps)
        ours = [found[subject.code(steps).name].minus(found["drafter"], m) for m in metrics]
        row: list[Cell] = [None] * (2 + len(fields))
        if theirs:
            figures = paper.TRAINING_FREE[theirs]
            beyond = [round(getattr(figures, f) - getattr(paper.DRAFTER, f), 4) for f in fields]
            row = [theirs, figures.fid, *beyond]
        rows.append([subject.scales - steps, *ours, *row])
    title = "Differences to the drafter alone, and the paper's: its FID, then differences to VAR-d30 (Table 6)"
    return StudyTable(title, columns, rows)


def findings(quality: Quality, subject: Subject, found: Mapping[str, Measured]) -> list[str]:
    """What came out, computed from the numbers."""
    name, drafter = quality.heading("frechet"), found["drafter"]
    steps = sorted(subject.steps)
    order = ["refiner", *(subject.code(n).name for n in steps), "drafter"]
    values = [found[setting]["frechet"].value for setting in order]
    names = [*(f"N = {n}" for n in steps), "the drafter alone"]
    rises = [name for name, a, b in zip(names, values[:-1], values[1:], strict=True) if b > a]
    trend = "falls with every scale more that the drafter makes"
    lines = [
        f"The {name} is {values[0]:.3g} for the refiner alone and {values[-1]:.3g} for the drafter alone. It {trend}"
        f"{f', but for {listed(rises)}' if rises else ''}."
    ]
    alike = [n for n in steps if (e := found[subject.code(n).name].minus(drafter, "frechet")) and e.low <= 0 <= e.high]
    lines.append(
        f"Within its interval CoDe is as good as the drafter alone at N = {listed(alike)}."
        if alike
        else "At every N the distance is beyond its interval above the drafter's: the refiner costs quality."
    )
    lines.append(
        "The paper: the FID rises with every scale left to the refiner, from 1.95 to 1.99 (one scale) and 3.39 (nine)."
    )
    return lines


def listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def of_splits(quality: Quality, code: Setting, splits: tuple[PictureSet, PictureSet]) -> dict[str, Any]:
    """Figures that need training and held-out pictures: tokenizer, classifier, memorisation."""
    train, heldout = splits
    if not len(heldout):
        return {}
    subject = quality.subject
    found: dict[str, Any] = {
        "heldout_psnr_db": mean_psnr(subject, heldout),
        "memorisation": {
            "setting": code.name,
            "samples": nearest_distance(tensors(subject, code, LOOKED_AT), train),
            "heldout": nearest_distance([heldout.pixels], train),
        },
    }
    if quality.knows_classes:
        columns = quality.columns_of(heldout.pixels)
        found["classifier_on_heldout"] = share(torch.from_numpy(columns[LOGITS].argmax(axis=1)) == heldout.labels)
    return found


def nearest_distance(parts: Iterable[Tensor], train: PictureSet) -> float:
    """Median distance of pictures, uint8 [n, 3, H, W] a part, to the nearest training picture (root mean square)."""
    known = train.pixels.flatten(1).float()
    return torch.cat([nearest(pixels.flatten(1).float(), known)[0] for pixels in parts]).median().item()


def tensors(subject: Subject, setting: Setting, images: int | None = None) -> Iterator[Tensor]:
    """Pictures of a setting, uint8 [B, 3, H, W] a batch."""
    for pixels in subject.pixels(subject.ids(setting)[:images]):
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def mean_psnr(subject: Subject, heldout: PictureSet) -> float:
    """Mean over held-out pictures of the reconstruction's PSNR, dB."""
    vqvae, parts = subject.vqvae, to_float(heldout.pixels).split(64)
    with torch.inference_mode():
        return (
            torch.cat([psnr(reconstruct(vqvae, part.to(subject.device)).cpu(), part) for part in parts]).mean().item()
        )


def nearest_pictures(subject: Subject, code: Setting, train: PictureSet) -> Image.Image:
    """Samples above the training pictures that are nearest to them, a column for each class."""
    columns = len(train.classes)
    pixels = torch.cat(list(tensors(subject, code, SHEET_ROWS * columns)))
    return nearest_sheet(pixels, train, columns).quantize(COLOURS)


def sentences(values: Mapping[str, Any]) -> list[str]:
    """The figures of `of_splits` in words."""
    if "memorisation" not in values:
        return []
    memorised = values["memorisation"]
    found = [
        f"Held-out pictures through the VQVAE: PSNR {values['heldout_psnr_db']:.2f} dB. Median distance (root mean "
        f"square, 0 to 255) to the nearest training picture: {memorised['samples']:.1f} for {memorised['setting']}, "
        f"{memorised['heldout']:.1f} for held-out pictures."
    ]
    if "classifier_on_heldout" in values:
        found.append(f"The classifier is right on {values['classifier_on_heldout']} of the held-out pictures.")
    return found


def draw(subject: Subject, quality: Quality, found: Mapping[str, Measured], ours: Any, papers: Any) -> None:
    """The distance over N; 0 is the refiner alone, K the drafter alone. The paper's in the second panel."""
    steps = sorted(subject.steps)
    names = ["refiner", *(subject.code(n).name for n in steps), "drafter"]
    x = [0.0, *map(float, steps), float(subject.scales)]
    with_bars(ours, x, [found[name]["frechet"].estimate for name in names], marker="o")
    ours.set(
        title="these models", xlabel=f"scales of {subject.scales} by the drafter, N", ylabel=quality.heading("frechet")
    )
    n, fids = zip(*sorted((n, q.fid) for n, q in paper.TRAINING_FREE.items()), strict=True)
    papers.plot([*n, paper.SCALES], [*fids, paper.DRAFTER.fid], marker="o", linewidth=1.2, color="tab:orange")
    papers.set(title="the paper: d30 and d16, Table 6", xlabel="scales of 10 by the drafter, N", ylabel="FID")
