"""The start of a run in parts: made-up times, and that nothing is imported that only costs time."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from support.sources import PYTHONPATH
from tandem import timing
from tandem.timing import add_seconds, seconds_by_part, timed
from tandem_jobs.run.outcome import StoredShard, outcome
from tandem_jobs.run.start_up import StartUp, describe_start
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.dataset.start_times import ReplicaStart
from tandem_workers.models import model_set
from tandem_workers.stages.ledger import Ledger
from tandem_workers.stages.ray_data import Span, StageActor, empty_shard, from_row, to_row

NOW = 1_700_000_000.0


@pytest.fixture
def no_seconds(monkeypatch):
    """A process that has not timed anything."""
    monkeypatch.setattr(timing, "_seconds", type(timing._seconds)(float))


def spans(at: float) -> tuple[Span, ...]:
    """A shard that is drafted from `at` on and committed 3 seconds later."""
    return (
        Span("draft", "n/gpu0", NOW + at, NOW + at + 0.5),
        Span("refine", "n/gpu1", NOW + at + 1, NOW + at + 2),
        Span("encode", "n/pid1", NOW + at + 2.25, NOW + at + 2.5),
        Span("store", "n/pid1", NOW + at + 2.75, NOW + at + 3),
    )


def start(pool: str, weights: float) -> ReplicaStart:
    """A replica whose process began 1 s after the cluster was joined at NOW + 6, and was ready at NOW + 16."""
    seconds = {"device": 2.0, "weights": weights, "graphs": 0.5}
    return ReplicaStart(pool, f"n/{pool}", NOW + 11, NOW + 16, NOW + 7, NOW + 8, seconds)


def run_of(*shards: StoredShard) -> StartUp:
    run = StartUp()
    run.began, run.entered, run.joined = NOW, NOW + 4, NOW + 6
    run.checks, run.hash_s = {"imports": 3.0, "models": 0.25, "hash": 0.5}, 0.5
    for shard in shards:
        run.add(shard)
    return run


def test_parts_of_the_start_add_up_to_the_whole():
    seconds = {"draft": 0.5, "refine": 0.75, "decode": 0.25}
    first = StoredShard(0, 8, spans(16), (), seconds, (start("draft", 2.5), start("refine", 1.0)))
    later = StoredShard(1, 8, spans(17), (), seconds, (start("draft", 1.5),))
    summary = run_of(later, first).summary([*later.spans, *first.spans])
    assert summary["start_up_s"] == {"driver": 4.0, "cluster": 2.0, "replicas": 10.0, "first_shard": 3.0}
    parts = summary["start_up_parts_s"]
    assert parts["driver"] == {"imports": 3.0, "models": 0.25, "hash": 0.5, "other": 0.25}
    assert parts["cluster"] == {"ray": 1.5, "hash": 0.5}
    assert parts["first_shard"] == {
        "draft": 0.5, "refine": 0.75, "decode": 0.25, "encode": 0.25, "store": 0.25, "other": 1.0
    }  # fmt: skip
    draft = parts["replicas"]["draft"]
    assert draft["weights"] == {"median": 2.0, "max": 2.5}
    assert {name: values["median"] for name, values in draft.items() if name not in ("weights", "other")} == {
        "placing": 1.0, "process": 1.0, "imports": 3.0, "device": 2.0, "graphs": 0.5
    }  # fmt: skip
    refine = {name: values["max"] for name, values in parts["replicas"]["refine"].items()}
    assert sum(refine.values()) - refine["graphs"] == 10.0


def test_the_closing_table_has_the_start_in_two_lines():
    first = StoredShard(0, 8, spans(16), (), {"draft": 0.5}, (start("draft", 2.5),))
    before, after = describe_start(run_of(first).summary(first.spans))
    checks = "imports 3.0, models 0.2, hash 0.5, other 0.2"
    assert before == f"start: driver 4.0 s ({checks}), cluster 2.0 s (ray 1.5, hash 0.5)"
    assert after == (
        "replicas 10.0 s (draft: placing 1.0, process 1.0, imports 3.0, device 2.0, weights 2.5, other 0.5, "
        "graphs 0.5), first shard 3.0 s (draft 0.5, encode 0.2, store 0.2, other 2.0)"
    )
    assert describe_start({}) == []
    assert run_of().summary([]) == {}


def test_a_process_that_was_there_before_the_cluster_counts_from_then_on():
    early = ReplicaStart("draft", "n/gpu0", NOW + 11, NOW + 16, NOW + 1, NOW + 2)
    assert early.parts(NOW + 6) == {"placing": 0.0, "process": 0.0, "imports": 5.0, "other": 5.0}


def test_a_replica_that_came_later_is_not_part_of_the_start():
    """One that was restarted, or whose node came an hour after the first commit, in whatever order shards come."""
    late = ReplicaStart("draft", "n/late", NOW + 3610, NOW + 3616, NOW + 3606, NOW + 3607)
    first = StoredShard(0, 8, spans(16), (), {}, (start("draft", 2.5),))
    later = StoredShard(1, 8, spans(3620), (), {}, (late,))
    for shards in ((first, later), (later, first)):
        summary = run_of(*shards).summary([*first.spans, *later.spans])
        assert summary["start_up_parts_s"]["replicas"]["draft"]["placing"] == {"median": 1.0, "max": 1.0}


def test_an_inner_part_is_not_counted_in_the_outer_one(no_seconds):
    with timed("models"), timed("hash"):
        time.sleep(0.02)
    add_seconds("imports", 2.0)
    found = seconds_by_part()
    assert found["hash"] >= 0.02 > 0.01 > found["models"]
    assert found["imports"] == 2.0


def test_finding_the_models_is_a_part_of_the_start(no_seconds, monkeypatch):
    monkeypatch.setattr(model_set, "check_partners", lambda *others: time.sleep(0.02))
    model_set.resolve_models("embedded", "embedded", "embedded", False)
    assert seconds_by_part()["models"] >= 0.02


class Pass:
    name = "draft"

    def load(self):
        return self

    def __call__(self, shard: ShardRows) -> ShardRows:
        return shard


def test_a_replica_tells_of_its_start_with_its_first_shard_alone(monkeypatch):
    monkeypatch.setattr("tandem_workers.stages.ray_data.replica_name", lambda: "n/gpu0")
    monkeypatch.setattr(
        "tandem_workers.stages.ray_data.stage_metrics", lambda: type("No", (), {"observe": lambda *_: None})()
    )
    actor = StageActor(ShardRows, [Pass()], ledger=Ledger("", "draft"))
    shards = [from_row(actor(to_row(empty_shard(number), [])), ShardRows)[0] for number in (0, 1)]
    (told,), none = (shard.starts for shard in shards)
    assert (told.pool, told.replica, list(none)) == ("draft", "n/gpu0", [])
    assert told.began_s <= told.imported_s <= told.entered_s <= told.ready_s
    stored = outcome(to_row(shards[0], []) | {"rows": np.array([8])})
    assert stored.starts == (told,)


def test_models_are_resolved_and_loaded_without_torchs_compiler():
    """It takes as long to import as torch itself."""
    program = """
import sys, torch
from tandem_workers.models.model_set import load_tokenizer, load_transformer, resolve_models
models = resolve_models("embedded", "embedded", "embedded", False)
load_transformer(models.drafter, torch.float32, torch.device("cpu"))
load_tokenizer(models.vqvae, models.drafter_config.patch_nums, torch.float32, torch.device("cpu"))
assert "torch._dynamo" not in sys.modules, "torch._dynamo was imported"
"""
    code = {"PYTHONPATH": PYTHONPATH, "PATH": "/usr/bin:/bin"}
    ran = subprocess.run([sys.executable, "-c", program], env=code, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
