"""`tandem study gallery`: figures 2, 6, 9 and 10 of the paper, the same seeds by plain VAR and by CoDe."""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from tandem.config import to_dict
from tandem.errors import InputError
from tandem.prefix import to_tokens
from tandem.user_files import read_text
from tandem_jobs.labels.labels import choose_classes
from tandem_jobs.options.flags import COMMAS
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.sheets import samples_sheet, scales_sheet
from tandem_jobs.study.study_options import StudyOptions
from tandem_jobs.study.subject import Setting, Subject

EXAMPLES = """examples:
  tandem study gallery --out studies
  tandem study gallery --out studies --images 6 --classes face,flag --draft-steps 4,5,6
  tandem study latency --out studies --draft-steps 4,5,6 --batches 64     the next gallery there has these speed-ups"""
COLOURS = 256  # of a sheet: a quarter of the bytes, and no difference to the eye


class GallerySpec(StudyOptions):
    """Sheets of the same seeds by plain VAR and by CoDe at each N, and from coarse to fine."""

    images: PositiveInt = Field(8, description="columns of the sheets, an image of each class in turn")
    classes: Annotated[str, COMMAS] = Field(
        "all", description="which classes, as for tandem generate: 'face,flag', '0-7'"
    )


def run(spec: GallerySpec) -> dict[str, Any]:
    """Make the images of each setting and the sheets: all settings, plain VAR with CoDe, and coarse to fine."""
    subject = Subject(spec)
    index = chosen_images(subject, choose_classes(spec.classes, subject.models.class_names))
    names = [subject.models.class_names[label] for label in subject.labels_of(index)]
    refiner, drafter = subject.alone
    settings = [drafter, *(subject.code(n) for n in sorted(subject.steps, reverse=True)), refiner]
    ids = {setting: make(subject, setting, index) for setting in settings}
    speeds, notes = known_speed_ups(subject)
    pixels = {caption(one, speeds): as_pixels(subject, ids[one]) for one in settings}
    default = subject.pyramid.default_draft_steps
    n = default if default in subject.steps else subject.steps[-1]
    pair = [drafter, subject.code(n)]
    coarse = torch.from_numpy(ids[pair[1]].astype(np.int64)).to(subject.device)
    sheets = {
        "gallery": samples_sheet(pixels, names),
        "gallery-pair": samples_sheet({caption(one, speeds): pixels[caption(one, speeds)] for one in pair}, names),
        "coarse-to-fine": scales_sheet(subject.vqvae, coarse, n),
    }
    rows: list[list[Cell]] = [[one.name, caption(one, speeds), changed(ids[one], ids[drafter])] for one in settings]
    values = {
        "seed": spec.seed,
        "index": index.tolist(),
        "classes": names,
        "sampling": to_dict(subject.sampling),
        "dtype": subject.dtype_name,
        "weights_sha256": subject.models.hashes,
        "speed_up": speeds,
        "token_ids_that_differ": {setting.name: changed(ids[setting], ids[drafter]) for setting in settings},
    }
    columns = ("setting", "caption", "share of token ids that differ from plain VAR's")
    tables = [StudyTable(f"Rows of the sheets; coarse to fine at N = {n}", columns, rows)]
    found = [
        "The rows of a column have the same seed and label: up to scale N their token maps are those of plain VAR, the "
        "others are the refiner's."
    ]
    small = {name: sheet.quantize(COLOURS) for name, sheet in sheets.items()}
    heading = "The same seeds by plain VAR and by CoDe"
    return report(StudyResult("gallery", heading, values, tables, small, found, notes), spec.out)


def chosen_images(subject: Subject, labels: list[int]) -> NDArray[np.int64]:
    """Indices of the first images of these labels, in turn; they are those of the other studies."""
    turn, which = np.divmod(np.arange(subject.spec.images), len(labels))
    return turn * subject.models.drafter_config.num_classes + np.array(labels)[which]


def make(subject: Subject, setting: Setting, index: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Token ids of some images: uint16 [n, L]."""
    batch = subject.spec.batch
    parts = [index[start : start + batch] for start in range(0, len(index), batch)]
    return np.concatenate([to_tokens(subject.ids_of_batch(setting, part)) for part in parts])


def as_pixels(subject: Subject, ids_nL: NDArray[np.uint16]) -> torch.Tensor:
    """uint8 [n, 3, H, W]."""
    return torch.from_numpy(np.concatenate(list(subject.pixels(ids_nL)))).permute(0, 3, 1, 2)


def changed(ours_nL: NDArray[np.uint16], theirs_nL: NDArray[np.uint16]) -> float:
    """Share of token ids that differ."""
    return round(float((ours_nL != theirs_nL).mean()), 4)


def caption(setting: Setting, speeds: dict[str, float]) -> str:
    """The name of a row, with its speed-up where that is known."""
    names = {"drafter": "plain VAR", "refiner": "refiner alone"}
    name = names.get(setting.name) or f"N = {setting.parts[0][1]}"
    return f"{name}, {speeds[setting.name]:.1f}x" if setting.name in speeds else name


def known_speed_ups(subject: Subject) -> tuple[dict[str, float], list[str]]:
    """Speed-up of each setting at the largest batch, from OUT/latency.json of the same weights, and notes on it."""
    path = subject.spec.out / "latency.json"
    if not path.exists():
        return {}, ["Captions have no speed-up: tandem study latency with the same --out measures it."]
    try:
        found = json.loads(read_text(path))
        if found["weights_sha256"] != subject.models.hashes:
            return {}, [f"Captions have no speed-up: {path.name} is of other weights."]
        rows = [row for row in found["rows"] if row["draft_steps"] is not None]
        rows = sorted(rows, key=lambda row: row["batch"])  # of several batches the largest comes last
        speeds = {f"code-{row['draft_steps']}": float(row["speed_up"]["value"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected what tandem study latency writes, got {error!r}") from None
    if not rows:
        return {}, []
    return speeds, [f"Speed-ups are those of {path.name} at batch {rows[-1]['batch']}, on {found['device']}."]
