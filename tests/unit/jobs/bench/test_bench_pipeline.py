"""What the bench of the pipeline reports of given spans."""

from __future__ import annotations

import pytest

from tandem_jobs.bench.bench_pipeline import BenchPipelineSpec, report
from tandem_jobs.run.outcome import StoredShard
from tandem_workers.stages.ray_data import Span

SHARDS = 12


def run_of(draft_ends: list[float], refine_ends: list[float]) -> list[tuple[float, StoredShard]]:
    """Shards that one drafter and one refiner made, a second each, and that were written at once."""
    done = []
    for shard, (drafted, refined) in enumerate(zip(draft_ends, refine_ends, strict=True)):
        spans = [Span("draft", "a", drafted - 1, drafted), Span("refine", "b", refined - 1, refined)]
        done.append((refined, StoredShard(shard, 1, spans)))
    return done


def bench(draft_ends: list[float], refine_ends: list[float], refine_s: float = 0.5, window: int = 8) -> dict:
    spec = BenchPipelineSpec(
        drafters=1, refiners=1, draft_s=1, refine_s=refine_s, batch=1, shards=SHARDS, warm_up=3, window=window
    )
    return report(spec, 0.0, run_of(draft_ends, refine_ends))


def test_a_stage_without_a_pause_has_efficiency_one():
    found = bench([1.0 + i for i in range(SHARDS)], [1.5 + i for i in range(SHARDS)])
    assert (found["efficiency"], found["slowest_stage"]) == (1.0, "draft")
    assert found["backlog_shards"] == [0, 0]


def test_drafts_of_before_the_window_do_not_count():
    """Six shards are drafted before the refiner starts, which then finishes two a second."""
    found = bench([1.0 + i for i in range(SHARDS)], [7.5 + i / 2 for i in range(SHARDS)], window=6)
    assert found["images_per_s"] == 2
    assert found["backlog_shards"] == [5, 2]
    assert found["efficiency"] == 1.0


def test_a_drafter_that_waits_half_of_the_time_has_half_the_efficiency():
    found = bench([1.0 + 2 * i for i in range(SHARDS)], [1.5 + 2 * i for i in range(SHARDS)])
    assert found["efficiency"] == 0.5


def test_a_shard_in_work_at_an_edge_counts_in_part():
    """The drafter ends before the window does, at 12 of 12.5 s."""
    found = bench([1.0 + i for i in range(SHARDS)], [7.5 + i / 2 for i in range(SHARDS)])
    assert found["efficiency"] == 3.5 / 4


def test_slower_refiners_are_the_ones_that_count():
    found = bench([1.0 + i for i in range(SHARDS)], [4.0 + 4 * i for i in range(SHARDS)], refine_s=2)
    assert (found["efficiency"], found["slowest_stage"]) == (0.5, "refine")


@pytest.mark.parametrize("colocated", [0, 1])
def test_of_equal_rates_the_refiners_count(colocated):
    spec = BenchPipelineSpec(
        drafters=1, refiners=1, colocated=colocated, draft_s=1, refine_s=1, batch=1, shards=SHARDS, warm_up=3, window=8
    )
    found = report(spec, 0.0, run_of([1.0 + i for i in range(SHARDS)], [2.0 + 2 * i for i in range(SHARDS)]))
    assert found["slowest_stage"] == "refine"
    assert found["efficiency"] == pytest.approx(0.5 / (1 + colocated / 2), abs=1e-4)
