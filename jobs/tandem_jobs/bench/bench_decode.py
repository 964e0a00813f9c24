"""`tandem bench decode`: draft, refine and VQVAE decode against the matrix-multiplication peak of the same process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from tandem.errors import InputError, JobError, one_line
from tandem.graphs import FIRST_CAPTURED, release_graphs
from tandem.user_files import write_whole
from tandem_jobs.bench.beside_published import beside_published, print_published
from tandem_jobs.bench.decode_report import PAPER_DRAFT_STEPS, plot, print_memory, print_speed, print_table
from tandem_jobs.bench.decode_timing import Bench, BenchDecodeSpec, Setting
from tandem_jobs.bench.peer_timing import beside_bench, print_peers
from tandem_jobs.bench.peers import IMAGE_SIZE as PEERS_SIZE
from tandem_jobs.run.progress import say

EXAMPLES = """examples:
  tandem bench decode --drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights \\
      --dtype bfloat16 --draft-steps 8 --batches 8
  tandem bench decode                             the embedded model
  tandem bench decode --drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights --batches 2 \\
      --draft-steps 8,6 --peers dit-xl2,llamagen-xxl,aim-xl,mar-b
  tandem bench decode --drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights --dtype float32 \\
      --draft-steps 8,6 --batches 2 --no-plain-var --published CoDe
  tandem bench decode --paper-table 3 --drafter d30 --refiner d16 --vqvae vae_ch160v4096z32 --random-weights

Work is counted as in the published code, so the share of the peak can exceed 1 where we save work. The peak is the best
of repeated products of 4096 x 1920 by 1920 x 7680, measured before and after every run. The speed of a machine changes
over minutes: "of the moment's" is the share of the rate of the same product before and after each scale of more than
five seconds. The last line on stdout is one JSON object: the first N at the first batch, and all runs in "runs"."""


def run(spec: BenchDecodeSpec) -> dict[str, Any]:
    """Measure and report: a table on stderr, JSON on the last line of stdout, and a plot if a folder is given."""
    if spec.out is not None and spec.out.exists() and not spec.out.is_dir():
        raise InputError(f"--out: expected a folder, got the file {spec.out}")
    bench = Bench(spec)
    if spec.paper_table == "3":
        bench.pyramid.check_draft_steps(PAPER_DRAFT_STEPS)
        result: dict[str, Any] = {
            "paper_table": 3,
            "rows": print_memory(lambda n, batch: bench.kv_bytes(Setting(n, batch), torch.device("cuda"))),
        }
    else:
        result = measure(bench)
    if spec.out is not None:
        spec.out.mkdir(parents=True, exist_ok=True)
        write_whole(spec.out / "decode.json", json.dumps(result, indent=1) + "\n")
        if "runs" in result:
            plot(result, spec.out / "decode.png")
    print(json.dumps(result), flush=True)
    if failed := [row["error"] for rows in ("peers", "published") for row in result.get(rows, ()) if "error" in row]:
        raise JobError(f"not all could be measured: {failed[0]}")
    return result


def measure(bench: Bench) -> dict[str, Any]:
    """Run all settings, and report the medians of the runs that count."""
    spec = bench.spec
    found: dict[Setting, list[dict[str, Any]]] = {setting: [] for setting in bench.settings}
    for setting, counts in order(bench):
        one = bench.run(setting)
        if counts:
            found[setting].append(one)
        run = f"run {len(found[setting])} of {spec.repeats}" if counts else "a run that does not count"
        say(
            f"{run}, {setting.name}, batch {setting.batch}: draft {one['draft_s']:.3f} s, "
            f"refine {one['refine_s']:.3f} s, decode {one['decode_s']:.3f} s, "
            f"share {one['gemm_share']:.3f} ({one['gemm_share_of_moment']:.3f})"
        )
    rows = [bench.row(setting, runs) for setting, runs in found.items()]
    plain = {row["batch"]: row["images_per_s"] for row in rows if row["draft_steps"] is None}
    for row in rows:
        if row["batch"] in plain:
            row["speed_up"] = round(row["images_per_s"] / plain[row["batch"]], 3)
    head = {name: rows[0][name] for name in HEADLINE}
    result = {
        **head,
        "gemm_peak_gflops": round(max(bench.peaks) / 1e9, 1),
        "device": str(bench.device),
        "dtype": bench.dtype_name,
        "threads": torch.get_num_threads(),
        "models": {role: getattr(spec, role) for role in ("drafter", "refiner", "vqvae")},
        **asdict(bench.preparation),
        "repeats": spec.repeats,
        "runs": rows,
    }
    if bench.preparation.fold_adaln:
        result["table_bytes"] = sum(v.table.num_bytes for v in bench.vars.values() if v.table is not None)
    print_table(result)
    if spec.peers:
        result["peers"] = list(beside_bench(bench, spec.peers))
        print_peers(result["peers"])
        if (size := bench.models.image_size) != PEERS_SIZE:
            say(f"note: their images have {PEERS_SIZE} px, ours {size}")
    if spec.published is not None:
        try:
            result["published"] = list(beside_published(bench, spec.published))
            print_published(result["published"])
        except Exception as error:  # of other people's code: what was measured before stays
            say(f"warning: published code: {one_line(error)}")
            result["published"] = [{"error": one_line(error)}]
    if spec.paper_table == "1":
        print_speed(rows)
    return result


def order(bench: Bench) -> Iterator[tuple[Setting, bool]]:
    """Settings in the order of their runs, and whether a run counts.

    In rounds over all settings, so that a slow minute of the machine affects them all. With CUDA graphs one setting
    after the other, as memory does not suffice for the graphs of all.
    """
    repeats = range(bench.spec.repeats)
    if bench.launches_stages:
        for setting in bench.settings:
            release_graphs()
            yield from ((setting, False) for _ in range(FIRST_CAPTURED))
            yield from ((setting, True) for _ in repeats)
        return
    yield from ((setting, True) for _ in repeats for setting in bench.settings)


HEADLINE = (
    "draft_steps",
    "batch",
    "images_per_s",
    "images_per_s_with_decode",
    "gemm_share",
    "gemm_share_of_moment",
    "decode_gemm_share",
    "resident_bytes",
    "kv_bytes",
    "activation_bytes",
    "weight_bytes",
)
