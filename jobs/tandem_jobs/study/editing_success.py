"""`tandem study edits`: figure 7 of the paper in numbers, how often an edit shows the class that was asked for.

Shapes: n pictures, S side of the model's images, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from tandem.collaborative import decode
from tandem.config import to_dict
from tandem.edit_source import Source
from tandem.editing.canvas import Canvas
from tandem.editing.edit import source_of
from tandem.errors import InputError
from tandem.metrics import Estimate, mean_of, share
from tandem.sampling import uniforms
from tandem.scales import Decode
from tandem_jobs.run.progress import say
from tandem_jobs.study.real_pictures import find_splits
from tandem_jobs.study.result import Cell, StudyResult, StudyTable, report
from tandem_jobs.study.sheets import samples_sheet
from tandem_jobs.study.study_options import StudyOptions
from tandem_jobs.study.subject import Setting, Subject
from tandem_workers.features.choose_extractor import choose_extractor
from tandem_workers.features.embedded_classifier import embedded_class_names
from tandem_workers.features.extractors import EMBEDDED, LOGITS
from tandem_workers.stages.refiner import to_uint8

EXAMPLES = """examples:
  tandem study edits --out studies
  tandem study edits --out studies --data pictures --images 200 --draft-steps 3,5 --boxes 0.25,0.5,1"""
WHITE = 250  # a pixel with a channel below it belongs to the object
COLUMNS = 8  # of the sheet
Masks = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


class EditsSpec(StudyOptions):
    """Edit held-out pictures to another class, and inpaint them to their own, with boxes on the object."""

    images: PositiveInt = Field(200, description="held-out pictures, of all classes alike as far as they go")
    data: Path | None = Field(
        None, description="training and held-out pictures, as tandem pictures makes them; default: made in OUT/pictures"
    )
    boxes: tuple[float, ...] = Field(
        (0.25, 0.5, 1.0), description="areas of the boxes, as shares of the object's bounding box"
    )


def run(spec: EditsSpec) -> dict[str, Any]:
    """Make all edits, classify them, and write OUT/edits.json, .md and .png."""
    if wrong := [area for area in spec.boxes if not 0 < area <= 1]:
        raise InputError(f"--boxes: expected shares above 0 up to 1, got {wrong[0]:g}")
    subject = Subject(spec)
    if tuple(subject.models.class_names) != embedded_class_names():
        raise InputError("expected models of the embedded classes, whose classifier Tandem has")
    network = choose_extractor(EMBEDDED).load(subject.device)
    _, (_, heldout) = find_splits(spec.data, spec.out, subject.models)
    rows = evenly(heldout.labels, spec.images)
    pixels, own = heldout.pixels[rows].permute(0, 2, 3, 1).numpy(), heldout.labels[rows]
    other = others(own, len(subject.models.class_names))
    refiner, drafter = subject.alone
    steps = spec.draft_steps or (subject.pyramid.default_draft_steps,)
    settings = {
        **{f"CoDe, N = {n}": subject.code(n) for n in steps},
        "drafter alone": drafter,
        "refiner alone": refiner,
    }

    def hits(made: Pixels, wanted: Tensor) -> Any:
        return share(torch.from_numpy(network(made)[LOGITS]).argmax(1) == wanted)

    found: dict[str, dict[str, dict[str, Any]]] = {"edited": {}, "inpainted": {}}
    outside: dict[str, Estimate] = {}
    pictures: dict[str, Tensor] = {"source": heldout.pixels[rows]}
    for area in spec.boxes:
        masks, name = box_masks(pixels, area), f"{area:.0%}"
        blank = np.where(masks[..., None], 255, pixels).astype(np.uint8)
        for task, wanted in (("edited", other), ("inpainted", own)):
            found[task].setdefault("source, box blanked", {})[name] = hits(blank, wanted)
            for title, setting in settings.items():
                whole = drawn(subject, setting, pixels, masks, wanted)
                made = pasted(whole, pixels, masks)
                found[task].setdefault(title, {})[name] = hits(made, wanted)
                if title == next(iter(settings)):
                    outside[f"{task}, {name}"] = changed_outside(whole, pixels, masks)
                    pictures[f"{task}, {name}"] = torch.from_numpy(made).permute(0, 3, 1, 2)
        say(f"boxes of {name}: done")
    plain = {title: hits(drawn(subject, setting, pixels, None, other), other) for title, setting in settings.items()}
    plain |= {"source": hits(pixels, own)}
    values = {
        "images": len(own),
        "seed": spec.seed,
        "boxes": list(spec.boxes),
        "sampling": to_dict(subject.sampling),
        "dtype": subject.dtype_name,
        "weights_sha256": subject.models.hashes,
        "pictures": heldout.digest,
        "shares": found,
        "without_a_source": plain,
        "changed_outside_the_mask": outside,
    }
    sheet = samples_sheet(
        {name: each[columns_of(own)] for name, each in pictures.items()},
        [heldout.classes[label] for label in own[columns_of(own)].tolist()],
    )
    notes = [
        f"{len(own)} held-out pictures; a box is centred on the object's bounding box. The share of pictures that the "
        "embedded classifier takes for the class that was asked for, with Wilson's 95 % interval. Edits are pasted: "
        "outside the box each pixel is the source's. In columns the area of the box, as a share of the bounding box.",
        "Not pasted, pixels outside the box differ from the source by this much of 255, on average: "
        + "; ".join(f"{name} {one}" for name, one in outside.items())
        + ". Latent cells that the box touches are drawn whole; in the others f_hat is the source's own, but the VQVAE "
        "loses some, and its decoder sees the whole picture.",
        "Plain generation of the same classes and seeds: "
        + "; ".join(f"{title} {one}" for title, one in plain.items() if title != "source")
        + f". The sources themselves, as their own class: {plain['source']}.",
    ]
    heading, sheets = "Edits by class and inpainting", {"edits": sheet}
    return report(StudyResult("edits", heading, values, tables(found), sheets, findings(found), notes), spec.out)


def evenly(labels_m: Tensor, count: int) -> Tensor:
    """Rows of up to `count` pictures, int64: the first of each class, then the second of each, and so on."""
    order = [torch.nonzero(labels_m == label)[:, 0].tolist() for label in labels_m.unique().tolist()]
    turns = [rows[turn] for turn in range(max(map(len, order))) for rows in order if turn < len(rows)]
    return torch.tensor(sorted(turns[:count]))


def others(own_n: Tensor, num_classes: int) -> Tensor:
    """Another class for each picture, all others in turn: int64 [n]."""
    return (own_n + 1 + torch.arange(len(own_n)) % (num_classes - 1)) % num_classes


def columns_of(own_n: Tensor) -> list[int]:
    """Pictures for the sheet, spread over all."""
    return [i * len(own_n) // COLUMNS for i in range(min(COLUMNS, len(own_n)))]


def box_masks(pixels_nSS3: Pixels, area: float) -> Masks:
    """Boxes in the middle of each object's bounding box, of a share of its area: bool [n, S, S]."""
    masks = np.zeros(pixels_nSS3.shape[:3], bool)
    for mask, picture_SS3 in zip(masks, pixels_nSS3, strict=True):
        object_SS = np.min(picture_SS3, axis=2) < WHITE
        rows, columns = np.flatnonzero(object_SS.any(1)), np.flatnonzero(object_SS.any(0))
        if len(rows):
            mask[inner(rows[0], rows[-1] + 1, area), inner(columns[0], columns[-1] + 1, area)] = True
    return masks


def inner(start: int, stop: int, area: float) -> slice:
    """The middle part of a range, `area`^0.5 as long, at least 1."""
    length = max(1, round((stop - start) * area**0.5))
    first = start + (stop - start - length) // 2
    return slice(int(first), int(first + length))


@torch.inference_mode()
def drawn(subject: Subject, setting: Setting, pixels: Pixels, masks: Masks | None, labels_n: Tensor) -> Pixels:
    """Edits of all pictures as the VQVAE decodes them: uint8 [n, S, S, 3]; without masks the images of these labels."""
    return np.concatenate(list(batches(subject, setting, pixels, masks, labels_n)))


def changed_outside(made: Pixels, pixels: Pixels, masks: Masks) -> Estimate:
    """Mean absolute difference, of 255, of the pixels that no mask holds; with its interval over the pictures."""
    each = [
        np.abs(one[~mask].astype(int) - was[~mask]).mean() for one, was, mask in zip(made, pixels, masks, strict=True)
    ]
    return mean_of(torch.tensor(each))


def pasted(made: Pixels, pixels: Pixels, masks: Masks) -> Pixels:
    """The made pixels inside the masks, the pictures' outside: uint8 [n, S, S, 3]."""
    canvas = Canvas.of("resize", masks[0], pixels.shape[1])
    each = zip(made, pixels, masks, strict=True)
    return np.stack([canvas.put_back(one, picture, mask, "paste") for one, picture, mask in each])


def batches(
    subject: Subject, setting: Setting, pixels: Pixels, masks: Masks | None, labels_n: Tensor
) -> Iterator[Pixels]:
    """What the models make, a batch at a time."""
    batch, quantizer = subject.spec.batch, subject.vqvae.quantize
    for start in range(0, len(pixels), batch):
        rows = slice(start, start + batch)
        source: Source | None = None if masks is None else source_of(subject.vqvae, pixels[rows], masks[rows])
        labels_B = labels_n[rows].to(subject.device)
        index = np.arange(start, start + len(labels_B))
        noise_BL = uniforms(subject.spec.seed, index, subject.pyramid.num_tokens).to(subject.device)
        ids_BL = noise_BL[:, :0]
        for role, stop in setting.parts:
            var = subject.transformer(role)
            sampling = subject.sampling.of_refiner if role == "refiner" else subject.sampling
            found = Decode.of(var, quantizer, labels_B, noise_BL, ids_BL, stop, sampling, source=source)
            ids_BL = found.tokens()
        yield to_uint8(decode(subject.vqvae, ids_BL, source))


def tables(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[StudyTable]:
    """A table a task: rows are settings, columns areas."""
    titles = {"edited": "Edited to another class: it is recognised", "inpainted": "Inpainted to the own class: it is"}
    made = []
    for task, by_setting in found.items():
        areas = list(next(iter(by_setting.values())))
        rows: list[list[Cell]] = [[title, *(shares[area] for area in areas)] for title, shares in by_setting.items()]
        made.append(StudyTable(titles[task], ("setting", *areas), rows))
    return made


def findings(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """What CoDe does at each size of the box, beside the box blanked."""
    (blank, code, *_), lines = found["edited"], []
    for area in found["edited"][code]:
        new, own = (found[task][code][area] for task in ("edited", "inpainted"))
        without = [f"{found[task][blank][area].value:.3f}" for task in ("edited", "inpainted")]
        lines.append(
            f"Box of {area}: {code} shows the new class in {new} of the edits, and the own one in {own} of the "
            f"inpainted pictures; the box blanked {without[0]} and {without[1]}."
        )
    return lines
