"""Times of the published code beside ours, for `tandem bench decode`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tandem.counting.costs import decode_flops, scale_flops
from tandem_jobs.bench.decode_report import name_of
from tandem_jobs.bench.decode_timing import Bench, Setting
from tandem_jobs.bench.peak_memory import free_memory
from tandem_jobs.bench.peers import GUIDED
from tandem_jobs.bench.published_code import PublishedCode
from tandem_jobs.bench.repeated import median_of
from tandem_jobs.run.progress import say


def beside_published(bench: Bench, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each setting: seconds from labels to pixels of the published code and of ours, and their ratio.

    In rounds over all settings. In each round one side is loaded, timed and freed, then the other, in changing order:
    two copies of large models do not fit a machine's memory.
    """
    ours: dict[Setting, list[float]] = {setting: [] for setting in bench.settings}
    theirs: dict[Setting, list[float]] = {setting: [] for setting in bench.settings}

    def time_ours() -> None:
        bench.load()
        for setting, seconds in rounds(bench, lambda one: our_seconds(bench, one)):
            ours[setting].append(seconds)
            say(f"ours, {setting.name}, batch {setting.batch}: {seconds:.3f} s")
        bench.unload()

    def time_theirs() -> None:
        configs = bench.configs["draft"], bench.configs["refine"], bench.vqvae_config
        published = PublishedCode(folder, *configs, bench.device)
        for setting, seconds in rounds(bench, lambda one: their_seconds(bench, published, one)):
            theirs[setting].append(seconds)
            say(f"published code, {setting.name}, batch {setting.batch}: {seconds:.3f} s")

    bench.unload()
    sides = [time_ours, time_theirs]
    for _ in range(bench.spec.repeats):
        for side in sides:
            side()
            free_memory(bench.device)
        sides.reverse()
    bench.load()
    for setting in bench.settings:
        yield {
            "draft_steps": setting.draft_steps,
            "batch": setting.batch,
            "published_s": vars(median_of(theirs[setting])),
            "seconds": vars(median_of(ours[setting])),
            "times_as_fast": vars(median_of([a / b for a, b in zip(theirs[setting], ours[setting], strict=True)])),
            "work_ratio": published_flops(bench, setting) / our_flops(bench, setting),
        }


def rounds(bench: Bench, seconds: Callable[[Setting], float]) -> Iterator[tuple[Setting, float]]:
    """Each setting with its seconds, after a run of one image that does not count."""
    seconds(replace(bench.settings[0], batch=1))
    for setting in bench.settings:
        yield setting, seconds(setting)


def our_seconds(bench: Bench, setting: Setting) -> float:
    """Seconds from labels to pixels of a batch."""
    found = bench.times(setting)
    return sum(found[part] for part in ("draft_s", "refine_s", "decode_s"))


def their_seconds(bench: Bench, published: PublishedCode, setting: Setting) -> float:
    """The same of the published code."""
    labels_B = torch.arange(setting.batch, device=bench.device) % bench.configs["draft"].num_classes
    began = bench.clock()
    published.make(labels_B, setting.draft_steps)
    return bench.clock() - began


def our_flops(bench: Bench, setting: Setting) -> float:
    """Counted work of a batch, to pixels."""
    return sum(bench.flops(setting)) + setting.batch * decode_flops(bench.vqvae_config)


def published_flops(bench: Bench, setting: Setting) -> float:
    """The same of the published code, which guides at every scale."""
    stages = bench.stages(setting)
    tokens = sum(sum(scale_flops(bench.configs[s], a, b, GUIDED)) for s, a, b in stages)
    return setting.batch * (tokens + decode_flops(bench.vqvae_config))


def print_published(rows: list[dict[str, Any]]) -> None:
    """The rows as a table."""
    head = ("", "batch", "published s", "ours s", "times as fast", "range", "by counted work")
    table = Table(*head, title="the published code and ours in turn, labels to pixels, random weights")
    for row in rows:
        ratio = row["times_as_fast"]
        table.add_row(
            *(name_of(row), str(row["batch"]), f"{row['published_s']['value']:.2f}", f"{row['seconds']['value']:.2f}"),
            *(f"{ratio['value']:.2f}", f"{ratio['low']:.2f} to {ratio['high']:.2f}", f"{row['work_ratio']:.2f}"),
        )
    Console(stderr=True).print(table)
