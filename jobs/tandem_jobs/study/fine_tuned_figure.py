"""The plot of `tandem study fine-tuned`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from tandem.metrics import Estimate
from tandem_jobs.study.figures import drawn, with_bars

APART = 0.1  # of N, between settings, so that their intervals stand beside each other


def plot(
    distances: Mapping[str, Mapping[int, Estimate]],
    differences: Mapping[str, Mapping[int, Estimate]],
    drafter: Estimate,
    name: str,
) -> Image.Image:
    """Distances by setting and N, and paired differences to training-free CoDe; lower is better.

    Args:
        distances: by setting, then by N.
        differences: the same, without training-free CoDe.
        drafter: the distance of the drafter alone.
        name: of the distance.
    """
    settings = list(distances)
    steps = sorted({n for found in distances.values() for n in found})

    def draw(left: Any, right: Any) -> None:
        for axes, values, title in ((left, distances, name), (right, differences, f"{name} minus training-free")):
            for setting, found in values.items():
                place = settings.index(setting)
                x = [n + APART * (place - (len(settings) - 1) / 2) for n in found]
                with_bars(axes, x, list(found.values()), fmt="o", markersize=4, color=f"C{place}", label=setting)
            axes.set(title=title, xlabel="N, scales by the drafter", xticks=steps)
        left.axhline(drafter.value, color="grey", linestyle="--", linewidth=1, label="drafter alone")
        right.axhline(0, color="black", linewidth=0.8)
        left.legend(fontsize=8)

    return drawn(2, draw)
