"""Times of other image generators beside ours, in the same rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tandem.counting.roofline import PAPER_SPEED
from tandem.errors import one_line
from tandem.graphs import FIRST_CAPTURED, release_graphs
from tandem_jobs.bench.decode_timing import Bench, Setting
from tandem_jobs.bench.gpu_models import DecodeInputs, GpuModels
from tandem_jobs.bench.peak_memory import free_memory
from tandem_jobs.bench.peers import GUIDED, PEERS, Part, PeerName, Place
from tandem_jobs.bench.repeated import median_of
from tandem_jobs.run.progress import say


@dataclass(frozen=True)
class Ours:
    """What a peer is timed beside.

    Attributes:
        name: of the setting.
        seconds: of a batch of it, without VQVAE decode.
        warm_ups: runs before times count.
    """

    name: str
    seconds: Callable[[], float]
    warm_ups: int = 1


def beside_bench(bench: Bench, names: tuple[PeerName, ...]) -> Iterator[dict[str, Any]]:
    """A row for each peer and batch, beside the first N of `tandem bench decode`."""
    place = {"device": bench.device, "dtype": bench.dtype}
    for batch in sorted({setting.batch for setting in bench.settings}, reverse=True):
        setting = next(one for one in bench.settings if one.batch == batch)
        ours = Ours(setting.name, partial(tokens_s, bench, setting), FIRST_CAPTURED if bench.launches_stages else 1)
        for name in names:
            release_graphs()
            yield tried_peer(name, batch, place, ours, bench.spec.repeats)


def tokens_s(bench: Bench, setting: Setting) -> float:
    """Seconds of the tokens of a batch."""
    found = bench.times(setting)
    return found["draft_s"] + found["refine_s"]


def beside_card(
    models: GpuModels, names: tuple[PeerName, ...], repeats: int, left: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """The same beside the models of `tandem bench card`, with graphs. Ends early when `left` seconds are few."""
    steps, place = models.size.draft_steps, {"device": models.device, "dtype": models.dtype}
    for name in names:
        for batch in models.size.batches:
            if left() < 20:
                return
            inputs = models.batch(batch)

            def seconds(inputs: DecodeInputs = inputs) -> float:
                began = clock(models.device)
                models.refine(inputs, models.draft(inputs, steps))
                return clock(models.device) - began

            with models.way("graphs"):
                yield tried_peer(name, batch, place, Ours(f"N = {steps}", seconds, FIRST_CAPTURED), repeats)


def tried_peer(name: PeerName, batch: int, place: Place, ours: Ours, repeats: int) -> dict[str, Any]:
    """`time_peer`, or an error of other people's code: the other rows stay."""
    try:
        return time_peer(name, batch, place, ours, repeats)
    except Exception as error:
        say(f"warning: {name}: {one_line(error)}")
        return {"peer": name, "batch": batch, "error": one_line(error)}


def time_peer(name: PeerName, batch: int, place: Place, ours: Ours, repeats: int) -> dict[str, Any]:
    """Rounds of ours and of a peer's parts, each multiplied by its calls. The peer's network is freed at the end."""
    peer = PEERS[name]
    parts = peer.parts(batch, place)
    own_s, peer_s = [], []
    for round_ in range(ours.warm_ups + repeats):
        own, theirs = ours.seconds(), generation_s(parts, place["device"])
        say(f"{peer.title}, batch {batch}: a generation of {theirs:.4g} s, {ours.name} {own:.4g} s")
        if round_ >= ours.warm_ups:
            own_s.append(own)
            peer_s.append(theirs)
    del parts
    free_memory(place["device"])
    return {
        "peer": name,
        "title": peer.title,
        "steps": peer.steps,
        "batch": batch,
        "rows_per_image": GUIDED,
        "images_per_s": vars(median_of([batch / s for s in peer_s])),
        "setting": ours.name,
        "our_images_per_s": vars(median_of([batch / s for s in own_s])),
        "ours_times_as_fast": vars(median_of([a / b for a, b in zip(peer_s, own_s, strict=True)])),
        "paper_images_per_s": peer.paper_images_per_s,
    }


def as_graph(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The call as a CUDA graph, since eager ones of small networks are the host's time; eager where that fails."""
    if device.type != "cuda":
        return call
    try:
        with torch.cuda.stream(torch.cuda.Stream(device)):
            for _ in range(2):
                call()
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except Exception as error:
        say(f"no CUDA graph, so eager: {one_line(error)[:120]}")
        torch.cuda.synchronize(device)
        return call
    return graph.replay


@torch.inference_mode()
def generation_s(parts: list[Part], device: torch.device) -> float:
    """Seconds of a whole generation, from one call of each part."""
    total = 0.0
    for part in parts:
        call = as_graph(part.prepare(), device)
        began = clock(device)
        call()
        total += part.times * (clock(device) - began)
    return total


def clock(device: torch.device) -> float:
    """Seconds, when all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def print_peers(rows: list[dict[str, Any]]) -> None:
    """The rows beside the paper's Table 1."""
    plain = PAPER_SPEED[None][0]
    ours = rows[0].get("setting", "ours")
    heads = ("", "steps", "batch", "images/s", ours, "times", "in the paper", "plain VAR-d30, times")
    title = "other generators, random weights, without image decoder; a call of each part was timed and multiplied"
    table = Table(*heads, title=title)
    for column in table.columns:
        column.overflow = "fold"  # figures are never cut
    for row in [row for row in rows if "error" not in row]:
        theirs, own, ratio = (row[key]["value"] for key in ("images_per_s", "our_images_per_s", "ours_times_as_fast"))
        paper = row["paper_images_per_s"]
        cells = (row["title"], row["steps"], row["batch"], f"{theirs:.4g}", f"{own:.4g}")
        table.add_row(*map(str, cells), f"{ratio:.1f}", str(paper), f"{plain / paper:.1f}")
    Console(stderr=True).print(table)
