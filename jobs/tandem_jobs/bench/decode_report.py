"""Output of `tandem bench decode`: a table, a plot, and the paper's tables next to ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tandem.roofline import PAPER_SPEED
from tandem_jobs.run.progress import say

# CoDe (arXiv 2411.17787), Table 3: KV cache in MB: batch -> (VAR-d30, CoDe at N = 6). VAR did not fit at 128
PAPER_CACHE_MB: dict[int, tuple[int | None, int]] = {
    8: (3595, 1023),
    16: (7191, 2056),
    32: (14345, 4083),
    64: (28707, 8160),
    128: (None, 16320),
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
    table = Table("", "batch", "paper MB", "ours MB", "ours / paper", title="Table 3: KV cache, N = 6")
    found: list[dict[str, Any]] = []
    for batch, (plain_mb, code_mb) in PAPER_CACHE_MB.items():
        ours = {"VAR": kv_bytes(None, batch), "CoDe": kv_bytes(PAPER_DRAFT_STEPS, batch)}
        for (name, counted), paper_mb in zip(ours.items(), (plain_mb, code_mb), strict=True):
            share = counted / 1e6 / paper_mb if paper_mb else None
            found.append({"method": name, "batch": batch, "paper_mb": paper_mb, "kv_bytes": counted, "share": share})
            paper = str(paper_mb) if paper_mb else "out of memory"
            table.add_row(name, str(batch), paper, f"{counted / 1e6:,.0f}", f"{share:.3f}" if share else "")
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
