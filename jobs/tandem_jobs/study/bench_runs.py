"""The bench of `tandem bench decode` for studies of time and memory, and intervals of repeated runs."""

from __future__ import annotations

from typing import Any, Literal

import torch

from tandem_jobs.bench.decode_report import PAPER_DRAFT_STEPS
from tandem_jobs.bench.decode_timing import Bench, BenchDecodeSpec
from tandem_jobs.options.options import MeasuredOptions
from tandem_jobs.run.decode_choices import choose_draft_steps
from tandem_jobs.study.paper import SCALES
from tandem_jobs.study.result import from_here
from tandem_jobs.study.study_options import StudyOutput


def open_bench(spec: StudyOutput, repeats: int = 1, counted: bool = False) -> Bench:
    """The bench with the models of a study. `counted`: nothing is loaded, and dtype auto is that of a GPU."""
    shared = {name: getattr(spec, name) for name in MeasuredOptions.model_fields if name != "spec"}
    table: Literal["3"] | None = "3" if counted else None
    return Bench(BenchDecodeSpec(**shared, threads=spec.threads, repeats=repeats, paper_table=table))


def draft_steps_of(asked: int | None, bench: Bench) -> int:
    """N; without one the paper's where the pyramid has as many scales as the paper's, else the default."""
    papers = PAPER_DRAFT_STEPS if bench.pyramid.num_scales == SCALES else None
    return choose_draft_steps(asked or papers, bench.models)


def recipe(bench: Bench) -> dict[str, Any]:
    """What is needed to repeat a measurement."""
    return {
        "models": {ref.role: from_here(ref.label) for ref in bench.models.refs},
        "weights_sha256": bench.models.hashes,
        "dtype": bench.dtype_name,
        "threads": torch.get_num_threads(),
        "preparation": vars(bench.preparation),
    }
