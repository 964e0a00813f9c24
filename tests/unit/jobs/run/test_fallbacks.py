"""Replicas that did not run as asked are named with stage, node and reason, and counted."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from tandem.errors import FallbackWarning, TandemWarning
from tandem_jobs.run import make_shards, pipeline
from tandem_jobs.run.backpressure import Flow
from tandem_jobs.run.fallback_report import summarise_fallbacks
from tandem_jobs.run.outcome import StoredShard, outcome
from tandem_jobs.run.pipeline import write_shard
from tandem_jobs.run.progress import print_summary
from tandem_jobs.run.start_up import StartUp
from tandem_workers.dataset.fallbacks import Fallback
from tandem_workers.dataset.shards import FailedShard, PrefixShard, ShardPlan, ShardRows
from tandem_workers.stages import ray_data
from tandem_workers.stages.ray_data import Span, StageActor, to_row

NO_KERNELS = "kernels: RuntimeError: Failed to find C compiler; going on with plain ones"
HALVED = "draft: out of memory with 8 images at once, now 4; images of a smaller batch may differ"


class Draft:
    """Falls back when it loads, and when it first works."""

    name = "draft"
    reason = HALVED

    def load(self):
        warnings.warn(NO_KERNELS, FallbackWarning, stacklevel=1)
        warnings.warn("no fallback", TandemWarning, stacklevel=1)
        return self

    def __call__(self, shard):
        if self.reason:
            warnings.warn(f"{self.reason} ({shard.shard} bytes)", FallbackWarning, stacklevel=1)
        self.reason = ""
        return PrefixShard.of(shard, prefix=np.zeros((len(shard), 5), np.uint16), draft_steps=2)


class Refine(Draft):
    """The same kernels are lacking here, and its work fails."""

    name = "refine"

    def __call__(self, shard):
        raise ValueError("unfit")


def rows(shard: int) -> ShardRows:
    return ShardRows(shard=shard, index=np.zeros(1, np.int64), label=np.zeros(1, np.int32))


class Sink:
    """Puts nothing away."""

    takes = PrefixShard

    def __call__(self, shard, spans): ...


def made(actor: StageActor, shard: int) -> StoredShard | FailedShard:
    """What the driver hears of a shard."""
    return outcome(write_shard(actor(to_row(rows(shard), [])), Sink()))


@pytest.fixture
def actors(monkeypatch):
    def make(replica, *stages):
        monkeypatch.setattr(ray_data, "replica_name", lambda: replica)
        return StageActor(ShardRows, stages)

    monkeypatch.setattr(pipeline, "replica_name", lambda: "n1/writer")
    monkeypatch.setattr(ray_data, "stage_metrics", lambda: SimpleNamespace(observe=lambda *of: None))
    with warnings.catch_warnings():
        yield make


def test_a_warning_belongs_to_the_stage_that_was_loading_or_at_work(actors):
    actor = actors("n1/gpu0", Draft())
    first, second = (made(actor, shard) for shard in (7, 8))
    expected = [Fallback("draft", "n1/gpu0", NO_KERNELS), Fallback("draft", "n1/gpu0", f"{HALVED} (7 bytes)")]
    assert first.fallbacks == second.fallbacks == tuple(expected)
    assert "no fallback" in first.warnings
    failed = made(actors("n1/gpu0", Draft(), Refine()), 7)
    assert isinstance(failed, FailedShard)
    assert failed.fallbacks == [expected[0], Fallback("refine", "n1/gpu0", NO_KERNELS), expected[1]]


def spans(*replicas: str) -> tuple[Span, ...]:
    return tuple(Span("draft", replica, 0.0, 1.0) for replica in replicas)


def test_replicas_are_counted_by_stage_and_reason():
    """Of three that work, two lack memory; how much is another number each time."""
    found = [Fallback("draft", name, f"{HALVED} ({name} bytes)") for name in ("n2/gpu0", "n1/gpu0")]
    assert summarise_fallbacks([*found, Fallback("refine", "n3/gpu1", NO_KERNELS)], spans(*"abc", "n1/gpu0")) == [
        {"stage": "draft", "reason": f"{HALVED} (n2/gpu0 bytes)", "replicas": ["n1/gpu0", "n2/gpu0"], "of": 5},
        {"stage": "refine", "reason": NO_KERNELS, "replicas": ["n3/gpu1"], "of": 1},
    ]


def test_the_summary_and_the_closing_table_name_them(monkeypatch, capsys):
    fallback = Fallback("draft", "n1/gpu0", NO_KERNELS)

    class Made:
        plan, pools, limits = ShardPlan(3, 1), (), None

        def flow(self, num_shards):
            return Flow([], True, num_shards)

        def run(self, shards, flow):
            yield StoredShard(0, 1, spans("n1/gpu0"), (NO_KERNELS,), fallbacks=(fallback,))
            yield StoredShard(1, 1, spans("n2/gpu0"))
            yield FailedShard.of(rows(2), cause="unfit", fallbacks=[fallback])

    monkeypatch.setattr(make_shards, "watching", lambda *_: nullcontext(SimpleNamespace(learn=lambda spans: None)))
    summary = make_shards.make_shards(Made(), [0, 1, 2], 3, 1, StartUp())
    assert summary["fallbacks"] == [{"stage": "draft", "reason": NO_KERNELS, "replicas": ["n1/gpu0"], "of": 2}]
    capsys.readouterr()
    print_summary(summary)
    assert f"draft: 1 of 2 replicas fell back (n1/gpu0): {NO_KERNELS}" in capsys.readouterr().err.splitlines()
