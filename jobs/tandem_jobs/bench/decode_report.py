"""Output of `tandem bench decode`: a table, a plot, and the paper's tables next to ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tandem.counting.roofline import PAPER_SPEED
from tandem_jobs.run.progress import say

MIB = 2**20


@dataclass(frozen=True)
class PaperMemory:
    """A row of the paper's Table 3, in MiB, without VQVAE decode.

    The paper writes MB. Its weights in float32 (d30, d16, VQVAE) and its cache (K in float32, V in 16 bits) give its
    numbers in units of 2^20 bytes.
    """

    running: int
    cache: int
    weights: int
    total: int


# CoDe (arXiv 2411.17787), Table 3: batch -> VAR-d30, which did not fit at 128, and CoDe at N = 6
PAPER_MEMORY: dict[int, tuple[PaperMemory | None, PaperMemory]] = {
    8: (PaperMemory(314, 3595, 8089, 12002), PaperMemory(284, 1023, 9275, 10619)),
    16: (PaperMemory(615, 7191, 8089, 15901), PaperMemory(557, 2056, 9275, 11951)),
    32: (PaperMemory(1216, 14345, 8089, 23662), PaperMemory(1103, 4083, 9275, 14614)),
    64: (PaperMemory(2420, 28707, 8089, 39228), PaperMemory(2195, 8160, 9275, 19943)),
    128: (None, PaperMemory(4380, 16320, 9275, 30598)),
}
PAPER_DRAFT_STEPS = 6


def name_of(row: dict[str, Any]) -> str:
    return "plain VAR" if row["draft_steps"] is None else f"N = {row['draft_steps']}"


def print_table(result: dict[str, Any]) -> None:
    """Speed, work, bytes, and seconds of every scale."""
    title = f"decoding on {result['device']}, {result['dtype']}, peak {result['gemm_peak_gflops']:.0f} GFLOP/s"
    speed = Table("", "batch", "draft s", "refine s", "decode s", "img/s", "+decode", "x VAR", title=title)
    work = Table("", "batch", "TFLOP/image", "of the peak", "of the moment's", "decode of the peak")
    memory = Table("", "batch", "weights MB", "KV cache MB", "activations MB", "resident MB")
    for row in result["runs"]:
        head = name_of(row), str(row["batch"])
        speed.add_row(
            *head,
            *(f"{row[name]:.2f}" for name in ("draft_s", "refine_s", "decode_s")),
            *(f"{row[name]:.3f}" for name in ("images_per_s", "images_per_s_with_decode")),
            f"{row['speed_up']:.2f}" if "speed_up" in row else "",
        )
        shares = (f"{row[name]:.3f}" for name in ("gemm_share", "gemm_share_of_moment", "decode_gemm_share"))
        work.add_row(*head, f"{row['tflop_per_image']:.3g}", *shares)
        sizes = ("weight_bytes", "kv_bytes", "activation_bytes", "resident_bytes")
        memory.add_row(*head, *(f"{row[name] / 1e6:,.0f}" for name in sizes))
    console = Console(stderr=True)
    for table in (speed, work, memory):
        console.print(table)
    for row in result["runs"]:
        seconds = " ".join(f"{s:.3f}" for s in row["scale_s"])
        say(f"{name_of(row)}, batch {row['batch']}, seconds a scale: {seconds}")


def print_speed(rows: list[dict[str, Any]]) -> None:
    """The paper's Table 1 next to ours."""
    table = Table("", "paper images/s", "ours", "paper speed-up", "ours", title="Table 1; the paper's on an L20")
    for row in rows:
        speed, gain = PAPER_SPEED.get(row["draft_steps"], ("", ""))
        ours = f"{row['images_per_s']:.3f} (batch {row['batch']})", str(row.get("speed_up", ""))
        table.add_row(name_of(row), str(speed), ours[0], str(gain), ours[1])
    Console(stderr=True).print(table)


def print_memory(kv_bytes: Callable[[int | None, int], int]) -> list[dict[str, Any]]:
    """The KV cache of the paper's Table 3 next to ours, counted as on a GPU: all rows go through a layer together."""
    table = Table("", "batch", "paper MiB", "ours MiB", "ours / paper", title="Table 3: KV cache, N = 6")
    found: list[dict[str, Any]] = []
    for batch, papers in PAPER_MEMORY.items():
        ours = {"VAR": kv_bytes(None, batch), "CoDe": kv_bytes(PAPER_DRAFT_STEPS, batch)}
        for (name, counted), row in zip(ours.items(), papers, strict=True):
            theirs = row.cache if row else None
            share = counted / MIB / theirs if theirs else None
            found.append({"method": name, "batch": batch, "paper_mib": theirs, "kv_bytes": counted, "share": share})
            paper = str(theirs) if theirs else "out of memory"
            table.add_row(name, str(batch), paper, f"{counted / MIB:,.0f}", f"{share:.3f}" if share else "")
    Console(stderr=True).print(table)
    return found


def plot(result: dict[str, Any], path: Path) -> None:
    """Seconds of every scale for each setting, and images a second. Says so where matplotlib is missing."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        say("no plot: matplotlib is missing (pip install 'tandem-code[plot]')")
        return
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        names = []
        for row in result["runs"]:
            names.append(f"{name_of(row)}, batch {row['batch']}")
            left.plot(
                range(1, len(row["scale_s"]) + 1),
                [s / row["batch"] for s in row["scale_s"]],
                marker="o",
                linewidth=1.2,
                label=names[-1],
            )
        left.set(title="seconds an image at each scale", xlabel="scale")
        left.legend()
        right.barh(names, [row["images_per_s"] for row in result["runs"]], label="draft and refine")
        with_decode = [row["images_per_s_with_decode"] for row in result["runs"]]
        right.barh(names, with_decode, height=0.4, label="with VQVAE decode")
        right.invert_yaxis()
        right.set(title=f"images a second, {result['device']}, {result['dtype']}")
        right.legend()
        figure.savefig(path, dpi=130)
    say(f"wrote {path}")
