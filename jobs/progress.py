"""What a run shows while it lasts and at its end: a bar on a terminal, lines elsewhere, a table, one JSON line."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from workers.records import Span

LINE_EVERY_S = 2.0


@dataclass
class RunProgress:
    """Counts images. Data goes to stdout, so everything here goes to stderr."""

    total: int
    done: int = 0
    bar: Progress | None = None
    began: float = field(default_factory=time.monotonic)
    last_line: float = 0.0
    made: int = 0

    def __enter__(self) -> RunProgress:
        if sys.stderr.isatty():
            columns = (
                TextColumn("images"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("images", total=self.total, completed=self.done, rate="")
        return self

    def add(self, num_images: int) -> None:
        self.done += num_images
        self.made += num_images
        seconds = time.monotonic() - self.began
        rate = self.made / seconds
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=f"{rate:.1f} images/s")
        elif time.monotonic() - self.last_line >= LINE_EVERY_S or self.done == self.total:
            self.last_line = time.monotonic()
            left = (self.total - self.done) / rate
            say(f"{self.done}/{self.total} images  {rate:.1f} images/s  {left:.0f} s left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()


def say(text: str) -> None:
    """One line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def busy_shares(spans: Sequence[Span]) -> dict[str, dict[str, Any]]:
    """For each stage: its replicas, seconds of work, and the share of the run that its replicas were busy.

    The run lasts from the first start of any stage to the last end, so loading weights is not counted.
    """
    stages: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        stages[span.stage].append(span)
    lasted = max((s.end_s for s in spans), default=0.0) - min((s.start_s for s in spans), default=0.0)
    summary = {}
    for stage, mine in stages.items():
        replicas = sorted({span.replica for span in mine})
        busy = sum(span.end_s - span.start_s for span in mine)
        summary[stage] = {
            "replicas": replicas,
            "busy_s": round(busy, 3),
            "busy_share": round(busy / (len(replicas) * lasted), 4) if lasted else 0.0,
        }
    return summary


def overlap_s(first: Iterable[Span], second: Iterable[Span]) -> float:
    """Seconds during which both groups had work in hand at once."""
    edges = [(s.start_s, 0, 1) for s in first] + [(s.end_s, 0, -1) for s in first]
    edges += [(s.start_s, 1, 1) for s in second] + [(s.end_s, 1, -1) for s in second]
    running, since, total = [0, 0], 0.0, 0.0
    for at, group, change in sorted(edges):
        if running[0] and running[1]:
            total += at - since
        running[group] += change
        since = at
    return total


def print_summary(summary: dict[str, Any]) -> None:
    """The closing table, on stderr."""
    table = Table(
        title=f"{summary['images']} images in {summary['seconds']:.1f} s, {summary['images_per_s']:.2f} a second"
    )
    table.add_column("stage")
    table.add_column("busy s", justify="right")
    table.add_column("busy share", justify="right")
    table.add_column("replicas (node/device)")
    for stage, values in summary["stages"].items():
        names = values["replicas"]
        shown = " ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        table.add_row(stage, f"{values['busy_s']:.2f}", f"{values['busy_share']:.0%}", shown)
    console = Console(stderr=True)
    console.print(table)
    if summary["draft_refine_overlap_s"]:
        console.print(f"drafters and refiners were busy at the same time for {summary['draft_refine_overlap_s']:.1f} s")
