"""Pictures of a report: agreement by class, images of the worst and the best classes, nearest real pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tandem.images import contact_sheet
from tandem.metrics import Estimate
from tandem_jobs.evaluation.feature_arrays import row_blocks
from tandem_jobs.evaluation.feature_set import FeatureSet, Sample
from tandem_jobs.evaluation.findings import Findings

CLASSES, PER_CLASS = 6, 8  # of a sheet
NEAREST = 12  # images whose nearest real pictures are shown
MAX_BARS = 40
BLOCK = 2000


def drawings(findings: Findings) -> tuple[dict[str, bytes], list[str]]:
    """PNG files by name, and what could not be drawn. Reads pictures of the dataset and the reference."""
    files, missing = dict[str, bytes](), list[str]()
    agreed = findings.agreement
    if agreed is not None and findings.names is not None:
        worst = agreed.worst_first()
        if (bars := agreement_bars(findings.report.agreement_by_class)) is not None:
            files["agreement.png"] = bars
        else:
            missing.append("agreement.png: matplotlib is needed to draw it (pip install 'tandem-code[plot]')")
        shown = min(CLASSES, (len(worst) + 1) // 2)
        files["worst_classes.png"] = class_sheet(findings, worst[:shown])
        if best := worst[shown:][::-1][:shown]:
            files["best_classes.png"] = class_sheet(findings, best)
    if findings.reference is not None:
        files["nearest.png"] = nearest_sheet(
            (findings.dataset.features, findings.dataset.sample),
            (findings.reference.features, findings.reference.sample),
        )
    return files, missing


def agreement_bars(by_class: Mapping[str, Estimate]) -> bytes | None:
    """A bar for each class with its 95 % interval, of many classes the worst; None without matplotlib."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return None
    shown = list(by_class.items())[:MAX_BARS][::-1]
    of_many = f", the worst {MAX_BARS} of {len(by_class)}" if len(by_class) > MAX_BARS else ""
    values = np.array([[each.value, each.value - each.low, each.high - each.value] for _, each in shown])
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6, 1 + 0.22 * len(shown)), layout="constrained")
        axes = figure.add_subplot(title=f"agreement with the label{of_many}", xlim=(0, 1))
        axes.barh([name[:40] for name, _ in shown], values[:, 0], xerr=np.maximum(values[:, 1:].T, 0), color="#7aa6c2")
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def class_sheet(findings: Findings, classes: list[int]) -> bytes:
    """A row of images for each class; the caption is what the classifier took an image for."""
    names, predicted = findings.names, findings.dataset.predicted
    assert names is not None and predicted is not None
    rows = [np.flatnonzero(findings.classes == label)[:PER_CLASS] for label in classes]
    found = findings.dataset.features.pictures(np.concatenate(rows))
    cells: list[NDArray[np.uint8] | None] = []
    captions: list[str] = []
    for label, mine in zip(classes, rows, strict=True):
        taken = [int(predicted[row]) for row in mine]
        cells += [found[int(row)] for row in mine] + [None] * (PER_CLASS - len(mine))
        captions += [names[label] if each == label else f"{names[label]}: {names[each]}?" for each in taken]
        captions += [""] * (PER_CLASS - len(mine))
    return as_png(contact_sheet(cells, captions, PER_CLASS))


def nearest_sheet(ours: tuple[FeatureSet, Sample], real: tuple[FeatureSet, Sample]) -> bytes:
    """Images of the dataset, below each the real picture of the reference's sample with the nearest features."""
    (features, sample), (real_features, real_sample) = ours, real
    places = np.unique(np.linspace(0, len(sample.rows) - 1, NEAREST).astype(int))
    nearest = nearest_rows(np.asarray(sample.features[places], dtype=np.float64), real_sample)
    rows, real_rows = sample.rows[places], real_sample.rows[nearest]
    found, real_found = features.pictures(rows), real_features.pictures(real_rows)
    cells = [*(found[int(row)] for row in rows), *(real_found[int(row)] for row in real_rows)]
    captions = [*(f"index {features.index[row]}" for row in rows), *("nearest" for _ in real_rows)]
    return as_png(contact_sheet(cells, captions, len(rows)))


def nearest_rows(ours_aF: NDArray[np.float64], sample: Sample) -> NDArray[np.int64]:
    """For each of ours the row of the sample with the nearest features: int64 [a]."""
    best, nearest = np.full(len(ours_aF), np.inf), np.zeros(len(ours_aF), dtype=np.int64)
    for rows in row_blocks(sample.features.shape[0], BLOCK):
        block_bF = np.asarray(sample.features[rows], dtype=np.float64)
        squared_ab = np.square(block_bF).sum(axis=1) - 2 * ours_aF @ block_bF.T
        closest = squared_ab.argmin(axis=1)
        values = squared_ab[np.arange(len(ours_aF)), closest]
        nearest = np.where(values < best, rows.start + closest, nearest)
        best = np.minimum(best, values)
    return nearest


def as_png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
