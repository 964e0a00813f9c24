"""Progress of a run: a bar and the stages on a terminal, lines elsewhere, and a closing table."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tandem_cluster.placement import format_range
from tandem_jobs.run.backpressure import Flow, StageState
from tandem_jobs.run.fallback_report import describe_fallback
from tandem_jobs.run.throughput import Throughput, show_speed
from tandem_workers.stages.ray_data import Span

REDRAWN_PER_S = 2  # on a terminal
LINE_EVERY_S = 2.0  # elsewhere
LINE_SHARE = 0.01  # in long runs lines come at least this share of the elapsed time apart
MISSING_S = 5.0  # how long replicas may be missing before the reason is looked up
REMIND_S = 60.0
RECENT_S = 60.0


@dataclass
class RunProgress:
    """Counts images and shows the stages: a live table on a terminal, lines elsewhere.

    Data goes to stdout, so everything here goes to stderr. `missing_reason` returns in one line why replicas of a stage
    are missing, or None if they are only loading; it is called if that takes long. The speed shown is
    `Throughput.images_per_s`; the time left is estimated from the last minute.
    """

    total: int
    done: int = 0
    flow: Flow | None = None
    missing_reason: Callable[[StageState], str | None] = lambda stage: None
    console: Console = field(default_factory=lambda: Console(stderr=True, force_terminal=is_terminal()))
    began: float = field(default_factory=time.monotonic)
    throughput: Throughput = field(default_factory=Throughput)
    recent: deque[tuple[float, int]] = field(default_factory=deque)  # (time, images made) of the last RECENT_S

    def __post_init__(self) -> None:
        self.live: Live | None = None
        self.last_line = -math.inf
        self.last_status = ""
        self.missing_since: dict[str, float] = {}
        self.started = False

    def __enter__(self) -> RunProgress:
        if self.console.is_interactive:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("", total=self.total, speed="", left="")
            self.live = Live(get_renderable=self.render, console=self.console, refresh_per_second=REDRAWN_PER_S)
            self.live.start(refresh=True)
        else:
            self.print_status()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.tick, daemon=True)
        self.thread.start()
        return self

    def add(self, num_images: int, spans: Sequence[Span] = ()) -> None:
        """Count the images of a committed shard, and the work on it."""
        now = time.monotonic()
        self.done += num_images
        self.throughput.add(num_images, spans)
        self.recent.append((now, self.throughput.images))
        while now - self.recent[0][0] > RECENT_S:
            self.recent.popleft()
        if self.live is None and self.done == self.total:
            self.print_line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()
        if self.live is not None:
            if error is None and self.flow is not None:
                self.flow.finish()
            self.live.stop()  # draws once more

    @property
    def left_s(self) -> float:
        """Seconds left at the rate of the last minute, or of the whole run if that minute has only one commit."""
        (first, before), (last, after) = self.recent[0], self.recent[-1]
        recent = (after - before) / (last - first) if last > first else after / max(1e-9, last - self.began)
        return (self.total - self.done) / recent

    def tick(self) -> None:
        """Print lines at intervals, and the reason when replicas are missing."""
        while not self.over.wait(0.5):
            now = time.monotonic()
            pause = max(LINE_EVERY_S, LINE_SHARE * (now - self.began))
            if self.live is None and self.done < self.total and now - self.last_line >= pause:
                self.print_line() if self.recent else self.print_status()
            for stage in self.flow.stages if self.flow else ():
                self.report_missing(stage, now)
            self.report_start()

    def report_start(self) -> None:
        """Report once that an elastic run has its first replicas."""
        stages = [stage for stage in self.flow.stages if stage.replicas] if self.flow else []
        if (
            self.started
            or not any(stage.is_elastic for stage in stages)
            or any(stage.missing_needed for stage in stages)
        ):
            return
        self.started = True
        counts = (f"{stage.ready} of {format_range(stage.needed, stage.replicas)} {stage.name}" for stage in stages)
        say(f"started with {', '.join(counts)} replicas; more join as nodes come")

    def report_missing(self, stage: StageState, now: float) -> None:
        """Report replicas that the stage waits for, but not those that an elastic stage could still add."""
        if not stage.missing_needed:
            self.missing_since.pop(stage.name, None)
        elif now - self.missing_since.setdefault(stage.name, now) > MISSING_S:
            self.missing_since[stage.name] = now  # perhaps only loading: ask again soon
            if reason := self.missing_reason(stage):
                self.missing_since[stage.name] += REMIND_S - MISSING_S
                say(f"waiting: {reason}")

    @property
    def status(self) -> str:
        """The phase of the run: before the first commit there are no images to count."""
        if self.flow is None or self.throughput.images or self.done == self.total:
            return "images"
        return "loading models" if any(stage.missing_needed for stage in self.flow.stages) else "first shard"

    def print_status(self) -> None:
        """Print the phase and the ready replicas, if they have changed."""
        stages = [stage for stage in self.flow.stages if stage.replicas] if self.flow else []
        ready = ", ".join(map(readiness, stages))
        text = f"{self.status}: {ready} replicas ready"
        if stages and text != self.last_status:
            self.last_line, self.last_status = time.monotonic(), text
            say(text)

    def print_line(self) -> None:
        self.last_line = time.monotonic()
        speed = show_speed(self.throughput.images_per_s)
        stages = "".join(f"  | {brief(stage)}" for stage in self.flow.stages) if self.flow else ""
        say(f"{self.done}/{self.total} images  {speed}  {self.left_s:.0f} s left{stages}")

    def render(self) -> Group:
        """The bar and, below it, the stages."""
        left = f"{self.left_s:.0f} s left" if self.recent and self.done < self.total else ""
        speed = show_speed(self.throughput.images_per_s)
        self.bar.update(self.task, description=self.status, completed=self.done, speed=speed, left=left)
        return Group(self.bar, self.table()) if self.flow else Group(self.bar)

    def table(self) -> Table:
        assert self.flow is not None
        table = Table("stage", box=None)
        for name in ("replicas ready", "shards in hand", "waiting", "done"):
            table.add_column(name, justify="right")
        for stage in self.flow.stages:
            ready = f"{stage.ready} of {stage.replicas}" if stage.replicas else "tasks"
            table.add_row(stage.name, *map(str, (ready, stage.in_flight, stage.waiting, stage.done)))
        used, limit = self.flow.object_store_bytes / 1e6, self.flow.object_store_limit_bytes / 1e6
        table.caption = f"object store: {used:.0f} MB in use of {limit:.0f} MB"
        return table


def readiness(stage: StageState) -> str:
    """The ready replicas of a stage, or that it is done and has released them."""
    if (stage.ending or stage.over) and not stage.ready:
        return f"{stage.name} done"
    return f"{stage.ready} of {stage.replicas} {stage.name}"


def brief(stage: StageState) -> str:
    """One stage in a line of progress."""
    ready = f"{stage.ready}/{stage.replicas} ready, " if stage.missing else ""
    return f"{stage.name}: {ready}{stage.in_flight} in hand, {stage.waiting} waiting"


def is_terminal() -> bool:
    """Whether a person watches stderr."""
    return sys.stderr.isatty()


def say(text: str) -> None:
    """One line for the person at the terminal, in one write: Ray prints from a thread of its own."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


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
    """Seconds during which both groups were working."""
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
    console = Console(stderr=True)
    speed = (
        f", {show_speed(summary['images_per_s'])} over {summary['working_s']:.1f} s of work"
        if summary["images"]
        else ""
    )
    console.print(f"{summary['images']} images in {summary['seconds']:.1f} s{speed}", highlight=False)
    table = Table()
    table.add_column("stage")
    table.add_column("busy s", justify="right")
    table.add_column("busy share", justify="right")
    table.add_column("replicas (node/device)")
    for stage, values in summary["stages"].items():
        names = values["replicas"]
        shown = " ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        table.add_row(stage, f"{values['busy_s']:.2f}", f"{values['busy_share']:.0%}", shown)
    console.print(table)
    for found in summary.get("fallbacks", ()):
        console.print(describe_fallback(found), highlight=False, markup=False, soft_wrap=True)
    if summary["draft_refine_overlap_s"]:
        console.print(f"drafters and refiners were busy at the same time for {summary['draft_refine_overlap_s']:.1f} s")
