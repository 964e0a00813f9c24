"""Ranges of replicas: what is refused, who asks for how much, and what is said meanwhile."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.data._internal.actor_autoscaler.autoscaling_actor_pool import AutoscalingActorConfig
from ray.data._internal.execution.interfaces import ExecutionResources

from tandem.errors import InputError, PlacementError
from tandem_cluster.elastic import Range, are_apart, place_elastically
from tandem_cluster.session import Session
from tandem_jobs.generate import GenerateSpec, choose_placement
from tandem_jobs.options.spec import parse
from tandem_jobs.run.backpressure import SLACK, Flow, StageState, resize
from tandem_jobs.run.pools import ActorPool, writer_options
from tandem_jobs.run.progress import RunProgress
from tandem_workers.dataset.shards import ShardRows

LABEL = "ray.io/accelerator-type"
BIG, SMALL = {LABEL: "H100"}, {LABEL: "L20"}
BASE = ("--out", "o", "--classes", "all", "--images", "5")


def generate(*argv: str) -> GenerateSpec:
    return parse(GenerateSpec, (*BASE, *argv), "tandem generate")


@pytest.mark.parametrize(
    ("argv", "drafters", "refiners"),
    [
        ("--max-drafters 4 --max-refiners 2", Range(1, 4), Range(1, 2)),
        ("--min-drafters 2 --max-drafters 4 --refiners 3", Range(2, 4), Range(3, 3)),
        ("--min-refiners 2 --max-refiners 2 --drafters 1 --placement split", Range(1, 1), Range(2, 2)),
    ],
)
def test_ranges_are_read(argv, drafters, refiners):
    spec = generate(*argv.split())
    assert spec.is_elastic
    assert spec.ranges() == (drafters, refiners)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--min-drafters 3 --max-drafters 2 --refiners 1", "--min-drafters of at most --max-drafters 2, got 3"),
        ("--min-refiners 2 --drafters 1", "expected --max-refiners with --min-refiners 2, got none"),
        ("--drafters 2 --max-drafters 4 --refiners 1", "expected --drafters alone, got --min-drafters or --max-"),
        ("--max-drafters 4", "expected --refiners or --max-refiners with --max-drafters, got neither"),
        ("--max-drafters 4 --refiners 1 --placement cpu", "expected --placement split with --max-drafters and"),
        ("--max-drafters 4 --refiners 1 --placement colocated", "--max-refiners, got colocated"),
        ("--max-drafters 4 --refiners 1 --profile h100", "expected --profile with --placement auto and without"),
        (
            "--max-drafters 0 --refiners 1",
            "--max-drafters: expected a whole number above 0 and of at most 100000, got '0'",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(argv, line):
    with pytest.raises(InputError) as caught:
        generate(*argv.split())
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_range_is_shown_and_each_replica_has_its_labels():
    placement = place_elastically(Range(1, 4), Range(2, 2), (BIG, SMALL), num_gpus=0, can_grow=True)
    assert placement.describe() == "placement split: 1 to 4 drafters, 2 refiners, one GPU each (as nodes come)"
    assert (placement.drafter_nodes, placement.refiner_nodes) == ((BIG,) * 4, (SMALL,) * 2)
    assert place_elastically(Range(1, 4), Range(1, 1), None, 2, False).drafter_nodes == ()


def test_a_minimum_that_can_never_be_met_is_refused():
    with pytest.raises(PlacementError, match="2 drafters and 1 refiners to start with: expected at most 2 GPUs, got 3"):
        place_elastically(Range(2, 4), Range(1, 4), None, num_gpus=2, can_grow=False)


@pytest.mark.parametrize(("num_gpus", "dtype", "said"), [(0, "auto", True), (2, "auto", False), (0, "float32", False)])
def test_before_there_is_a_gpu_real_ones_are_expected_and_that_is_said(num_gpus, dtype, said):
    spec = generate(*["--max-drafters", "2", "--refiners", "1", "--dtype"], dtype)
    session = Session(1, 0, num_gpus, simulated=num_gpus > 0, address="none", can_grow=True)
    placement, lines = choose_placement(spec, 32, [], session, 5, 10)
    assert placement.mode == "split"
    assert lines == ["no GPU has joined yet: real ones are expected, so dtype is bfloat16"] * said


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ([BIG], [SMALL], True),
        ([BIG], [BIG], False),
        ([], [SMALL], False),
        ([{"pool": "a"}], [SMALL], False),  # a node could have both
        ([BIG, SMALL], [SMALL], False),
        ([{LABEL: "!in(H100)"}], [SMALL], False),
        ([{"pool": "a", LABEL: "H100"}], [{"pool": "b", LABEL: "H100"}], True),
    ],
)
def test_stages_compete_unless_labels_keep_them_apart(first, second, apart):
    assert are_apart(first, second) is are_apart(second, first) is apart


counts = st.integers(0, 4)


@given(counts, counts, st.booleans())
def test_where_stages_compete_none_takes_more_than_it_needs_while_another_waits(drafters, refiners, apart):
    draft, refine = StageState("draft", 4, ready=drafters, least=2), StageState("refine", 4, ready=refiners, least=1)
    flow = Flow([draft, refine, StageState("write", 0)], apart)
    wanted = [flow.wanted(stage) for stage in flow.stages]
    if apart or (drafters >= 2 and refiners >= 1):
        assert wanted == [4, 4, 0]
    else:
        assert wanted == [2, 1, 0]
    assert flow.optional == sum(max(0, w - max(s.ready, s.needed)) for w, s in zip(wanted, flow.stages, strict=True))


def test_only_what_is_needed_is_missed_and_at_the_end_nothing_but_the_last():
    stage = StageState("draft", 4, ready=1, least=2)
    assert (stage.is_elastic, stage.missing, stage.missing_needed) == (True, 3, 1)
    stage.ready = 2
    assert (stage.missing, stage.missing_needed) == (2, 0)
    stage.ending, stage.in_flight = True, 3
    assert (stage.missing, stage.missing_needed) == (0, 0)
    stage.ready = 0
    assert (stage.missing, stage.missing_needed) == (1, 1)
    fixed = StageState("draft", 4, ready=3)
    assert (fixed.is_elastic, fixed.missing, fixed.missing_needed) == (False, 1, 1)
    assert StageState("write", 0, in_flight=2, ending=True).missing == 0


def test_queues_follow_the_replicas_that_are_ready():
    stage = StageState("draft", 8, least=1)
    assert [stage.limit_now for stage.ready in (0, 1, 3, 8)] == [SLACK, 2 + SLACK, 6 + SLACK, 16 + SLACK]
    assert stage.limit == 16 + SLACK


def test_ray_data_gets_a_new_size_and_never_none():
    class Actors:
        _config = AutoscalingActorConfig(1, 1, 1, 2, 2, ExecutionResources(gpu=1))

        def max_size(self) -> int:
            return self._config.max_size

    pool = Actors()
    for asked, size in ((4, 4), (0, 4), (2, 2)):
        resize(pool, asked)
        assert pool._config == AutoscalingActorConfig(size, size, size, 2, 2, ExecutionResources(gpu=1))


def test_ray_data_never_asks_for_nodes_itself():
    code = """
import tandem_jobs.cli
from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler as Autoscaler
threshold = Autoscaler.DEFAULT_CLUSTER_SCALING_UP_UTIL_THRESHOLD
assert min(threshold.cpu, threshold.gpu, threshold.memory, threshold.object_store_memory) > 1, threshold
"""
    subprocess.run([sys.executable, "-c", code], check=True)  # Ray has read the variables in this process


def test_shards_are_written_beside_the_last_stage_where_nodes_come_and_go():
    pool = ActorPool("refine", ShardRows, [], 2, (SMALL,) * 2, least=1)
    assert writer_options(pool) == {"label_selector": SMALL, "fallback_strategy": [{"label_selector": {}}]}
    assert writer_options(ActorPool("refine", ShardRows, [], 2, least=1)) == {}
    assert writer_options(ActorPool("refine", ShardRows, [], 2, (SMALL,) * 2)) == {}


def test_the_start_is_reported_once_and_replicas_still_to_come_are_not_missed(capsys):
    draft, refine = StageState("draft", 4, ready=1, least=1), StageState("refine", 1, ready=0, least=1)
    progress = RunProgress(10, flow=Flow([draft, refine, StageState("write", 0)]), missing_reason=lambda stage: "none")
    progress.missing_since, progress.started = {}, False
    for second in (0, 6, 70):
        refine.ready = int(second > 6)
        for stage in (draft, refine):
            progress.report_missing(stage, float(second))
        progress.report_start()
    lines = ["waiting: none", "started with 1 of 1 to 4 draft, 1 of 1 refine replicas; more join as nodes come"]
    assert capsys.readouterr().err.splitlines() == lines
