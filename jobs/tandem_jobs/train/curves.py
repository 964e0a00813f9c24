"""`tandem train curves`: plots the logs of training runs, of a single one also by scale."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tandem.errors import InputError
from tandem_jobs.options.flags import POSITIONAL
from tandem_jobs.options.spec import Spec
from tandem_workers.storage.places import open_store
from tandem_workers.training.log_file import LOG

EXAMPLES = """examples: several runs together; one run, also scale by scale
  tandem train curves runs/vqvae runs/drafter runs/refiner --out curves.png
  tandem train curves s3://bucket/refiner-8 --out refiner-8.png"""
MEASURES = {"loss": "training loss", "heldout_loss": "held-out loss", "heldout_psnr": "held-out PSNR, dB"}
BY_SCALE = {
    "loss_scale_": "training loss of a scale's tokens",
    "heldout_loss_scale_": "held-out loss of a scale's tokens",
    "heldout_accuracy_scale_": "held-out accuracy of a scale's tokens",
}
Series = dict[str, list[tuple[int, float]]]  # (step, value) by measure


class CurvesSpec(Spec):
    """Plot the logs of training runs: losses and held-out figures over steps (needs matplotlib)."""

    runs: Annotated[list[str], POSITIONAL] = Field(description="folders of training runs, or s3://bucket/prefix")
    out: Path = Field(Path("curves.png"), description="image file to write")


def run(spec: CurvesSpec) -> Path:
    """Write the plot: a panel for each measure that any run has logged, and of a single run for each by scale."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("matplotlib is needed to draw curves", "pip install 'tandem-code[plot]'") from error
    series = {place: read_log(place) for place in spec.runs}
    panels = panels_of(series)
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
        for number, (title, lines) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, len(panels), number, title=title, xlabel="step")
            for name, values in lines.items():
                axes.plot(*zip(*values, strict=True), label=name, linewidth=1.2)
            axes.legend()
        figure.savefig(spec.out, dpi=130)
    return spec.out


def panels_of(series: dict[str, Series]) -> dict[str, Series]:
    """The lines of each panel, by its title."""
    panels: dict[str, Series] = {}
    for measure, title in MEASURES.items():
        lines = {
            place.rstrip("/").rpartition("/")[2]: logged[measure]
            for place, logged in series.items()
            if measure in logged
        }
        if lines:
            panels[title] = lines
    if len(series) == 1:
        (logged,) = series.values()
        for start, title in BY_SCALE.items():
            scales = {int(name.removeprefix(start)): name for name in logged if name.startswith(start)}
            if scales:
                panels[title] = {f"scale {scale}": logged[scales[scale]] for scale in sorted(scales)}
    return panels


def read_log(place: str) -> Series:
    """What a run has logged. InputError where there is no log, or a line of it is none."""
    try:
        lines = open_store(place).read(LOG).decode().splitlines()
    except FileNotFoundError:
        raise InputError(f"expected a training run with {LOG}, found none in {place}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{place}/{LOG}: expected text, got other bytes: {error}") from None
    logged: dict[str, dict[int, float]] = defaultdict(dict)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)  # a loss may be NaN
            step = int(record.pop("step"))
            for name, value in record.items():
                logged[name][step] = float(value)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{place}/{LOG}, line {number}: expected an object with a step and measures: {error}"
            ) from None
    return {name: sorted(values.items()) for name, values in logged.items()}
