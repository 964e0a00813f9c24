"""Plots of a study, drawn with matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

NO_PLOT = "The plot is missing: it needs matplotlib (pip install 'tandem-code[plot]')."


def can_plot() -> bool:
    """Whether matplotlib is installed; without it a study has `NO_PLOT` among its notes."""
    return importlib.util.find_spec("matplotlib") is not None


def drawn(panels: int, draw: Callable[..., None], width: float = 4.6, height: float = 3.4) -> Image.Image:
    """A picture of plots side by side; `draw` gets the axes of each."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(width * panels, height), layout="constrained")
        draw(*figure.subplots(1, panels, squeeze=False)[0])
        data = io.BytesIO()
        figure.savefig(data, dpi=110)
    return Image.open(data).convert("RGB")


def with_bars(axes: Any, x: list[float], estimates: list[Any], **style: Any) -> None:
    """Points with lines over their 95 % intervals."""
    below = [max(0.0, e.value - e.low) for e in estimates]
    above = [max(0.0, e.high - e.value) for e in estimates]
    axes.errorbar(x, [e.value for e in estimates], yerr=[below, above], capsize=2, linewidth=1.2, **style)
