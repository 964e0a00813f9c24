"""`tandem train curves`: plots the logs of training runs."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tandem.errors import InputError
from tandem.user_files import read_text
from tandem_jobs.options.flags import POSITIONAL
from tandem_jobs.options.spec import Spec

EXAMPLES = """examples:
  tandem train curves runs/vqvae runs/drafter runs/refiner --out curves.png"""
MEASURES = {"loss": "training loss", "heldout_loss": "held-out loss", "heldout_psnr": "held-out PSNR, dB"}


class CurvesSpec(Spec):
    """Plot the logs of training runs: losses and held-out figures over steps (needs matplotlib)."""

    runs: Annotated[list[Path], POSITIONAL] = Field(description="folders of training runs")
    out: Path = Field(Path("curves.png"), description="image file to write")


def run(spec: CurvesSpec) -> Path:
    """Write the plot: a panel for each measure that any run has logged."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("matplotlib is needed to draw curves", "pip install 'tandem-code[plot]'") from error
    series = {folder.name: read_log(folder) for folder in spec.runs}
    measures = [name for name in MEASURES if any(name in logged for logged in series.values())]
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(4.2 * len(measures), 3.2), layout="constrained")
        for panel, name in enumerate(measures, start=1):
            axes = figure.add_subplot(1, len(measures), panel, title=MEASURES[name], xlabel="step")
            for run_name, logged in series.items():
                if name in logged:
                    steps, values = zip(*logged[name], strict=True)
                    axes.plot(steps, values, label=run_name, linewidth=1.2)
            axes.legend()
        figure.savefig(spec.out, dpi=130)
    return spec.out


def read_log(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every measure in FOLDER/log.jsonl. If a resumed run repeats a step, the later line counts."""
    path = folder / "log.jsonl"
    if not path.is_file():
        raise InputError(f"expected a training run with log.jsonl, found none in {folder}")
    logged: dict[str, dict[int, float]] = defaultdict(dict)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            record = json.loads(line)  # a loss may be NaN
            for name in MEASURES:
                if name in record:
                    logged[name][int(record["step"])] = float(record[name])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: expected an object with a step and measures: {error}") from None
    return {name: sorted(values.items()) for name, values in logged.items()}
