"""Placement is arithmetic: it never takes more GPUs than there are, and says why it chose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import InputError, PlacementError
from tandem_cluster.nodes import Node, parse_labels, selector
from tandem_cluster.placement import place, place_by_plan, place_mixed, place_on
from tandem_cluster.planner import Option
from tandem_jobs.run.pools import ActorPool, actor_options
from tandem_workers.dataset.shards import ShardRows

counts = st.none() | st.integers(1, 8)


@given(st.sampled_from(["auto", "split", "colocated"]), counts, counts, st.integers(0, 8), st.booleans())
def test_it_fits_or_it_is_refused(mode, drafters, refiners, gpus, simulated):
    try:
        plan = place(mode, drafters, refiners, gpus, simulated)
    except PlacementError:
        return
    assert plan.num_actors * plan.gpus_per_replica <= gpus
    assert plan.num_drafters >= 1
    assert plan.num_refiners >= 1
    if plan.mode != "colocated":
        assert drafters in (None, plan.num_drafters)
        assert refiners in (None, plan.num_refiners)


@given(st.integers(2, 64))
def test_an_open_split_uses_every_gpu_in_about_the_papers_ratio(gpus):
    plan = place("split", None, None, gpus, simulated=False)
    assert plan.num_actors == gpus
    assert abs(plan.num_refiners - gpus / 3) <= 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("auto", None, None, 0, False), ("cpu", 1, 1)),
        (("auto", None, None, 4, True), ("cpu", 1, 1)),
        (("auto", None, None, 4, False), ("colocated", 4, 4)),
        (("auto", 3, 1, 4, False), ("split", 3, 1)),
        (("split", 2, None, 3, True), ("split", 2, 1)),
        (("split", None, 2, 3, True), ("split", 1, 2)),
        (("colocated", None, 2, 4, True), ("colocated", 2, 2)),
        (("cpu", 2, 3, 0, False), ("cpu", 2, 3)),
    ],
)
def test_choices(arguments, expected):
    plan = place(*arguments)
    assert (plan.mode, plan.num_drafters, plan.num_refiners) == expected
    assert plan.reason in plan.describe()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("split", 2, 2, 3, False), "expected at most 3 GPUs, got 4 replicas"),
        (("split", 1, 1, 1, False), "expected at most 1 GPU, got 2 replicas"),
        (("colocated", 3, None, 2, False), "expected at most 2 GPUs, got 3 replicas"),
        (("colocated", 2, 3, 4, False), "as many drafters as refiners, got 2 and 3"),
        (("auto", 4, 4, 4, False), "expected at most 4 GPUs, got 8 replicas"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(PlacementError, match=message):
        place(*arguments)


LABEL = "ray.io/accelerator-type"
BIG = Node("a", 2, 2, {LABEL: "H100"})
SMALL = Node("b", 6, 6, {LABEL: "L20"})


def test_roles_take_all_gpus_of_the_nodes_they_are_given():
    placement = place_on([BIG, SMALL], {LABEL: "H100"}, {LABEL: "L20"}, None, 3)
    assert (placement.mode, placement.num_drafters, placement.num_refiners) == ("split", 2, 3)
    assert placement.drafter_nodes == ({LABEL: "H100"},) * 2
    assert placement.refiner_nodes == ({LABEL: "L20"},) * 3


def test_kinds_are_found_in_capitals_or_not():
    """Ray compares labels to the letter and labels nodes H100."""
    lower = Node("c", 2, 2, {LABEL: "h100"})
    placement = place_on([BIG, lower, SMALL], {LABEL: "h100"}, {LABEL: "l20"}, None, None)
    assert placement.drafter_nodes == ({LABEL: "in(H100,h100)"},) * 4
    assert placement.refiner_nodes == ({LABEL: "L20"},) * 6


@pytest.mark.parametrize(
    ("drafters_on", "refiners_on", "numbers", "line"),
    [
        ({LABEL: "B200"}, {LABEL: "L20"}, (1, 1), f"drafters: expected nodes of {LABEL}=B200 with GPUs, found none"),
        ({LABEL: "H100"}, {LABEL: "L20"}, (3, 1), "3 drafters on nodes of .*: expected at most 2 GPUs, got 3 replicas"),
        ({LABEL: "L20"}, {LABEL: "L20"}, (4, None), "expected --drafters and --refiners"),
        ({LABEL: "L20"}, {LABEL: "L20"}, (4, 3), "expected at most 6 GPUs, got 7 replicas"),
        ({}, {LABEL: "L20"}, (1, 1), "expected the same nodes or different ones, 1 are in both"),
    ],
)
def test_what_the_labelled_nodes_do_not_have_is_refused(drafters_on, refiners_on, numbers, line):
    with pytest.raises(PlacementError, match=line):
        place_on([BIG, SMALL], drafters_on, refiners_on, *numbers)


def test_a_plan_with_a_kind_in_both_roles_gives_each_replica_its_own_labels():
    option = Option("split", 5, 32, {"h100": 2, "l20": 1}, {"l20": 5}, 90.0, {}, 0.0)
    placement = place_by_plan(option, [BIG, SMALL])
    assert [labels[LABEL] for labels in placement.drafter_nodes] == ["H100", "H100", "L20"]
    assert [labels[LABEL] for labels in placement.refiner_nodes] == ["L20"] * 5
    mixed = actor_options(ActorPool("draft", ShardRows, [], 3, placement.drafter_nodes))["ray_remote_args_fn"]
    assert [mixed()["label_selector"][LABEL] for _ in range(4)] == ["H100", "H100", "L20", "H100"]
    assert actor_options(ActorPool("refine", ShardRows, [], 5, placement.refiner_nodes)) == {
        "label_selector": {LABEL: "L20"}
    }


def test_mixed_replicas_are_placed_and_told_apart():
    """The last of the draft pool are the ones that hold both models."""
    option = Option("mixed", 5, 32, {"h100": 1}, {"l20": 4}, 90.0, {}, 0.0, both={"h100": 1, "l20": 2})
    placement = place_by_plan(option, [BIG, SMALL])
    assert (placement.mode, placement.num_actors) == ("mixed", 8)
    assert "1 drafters, 4 refiners, 3 x (drafter + refiner), one GPU each" in placement.describe()
    assert [labels[LABEL] for labels in placement.both_nodes] == ["H100", "L20", "L20"]
    nodes = (*placement.drafter_nodes, *placement.both_nodes)
    args = actor_options(ActorPool("draft", ShardRows, [], 4, nodes, finishers=3))["ray_remote_args_fn"]
    found = [args() for _ in range(4)]
    assert [arg["label_selector"][LABEL] for arg in found] == ["H100", "H100", "L20", "L20"]
    assert ["runtime_env" in arg for arg in found] == [False, True, True, True]


def test_mixed_by_hand_takes_no_more_gpus_than_there_are():
    placement = place_mixed(1, 3, 2, [], [BIG, SMALL])
    assert (placement.num_drafters, placement.num_refiners, placement.num_both) == (1, 3, 2)
    on = [{LABEL: "h100"}, {LABEL: "L20"}, {LABEL: "L20"}]
    assert place_mixed(1, 3, 2, on, [BIG, SMALL]).drafter_nodes == ({LABEL: "H100"},)
    with pytest.raises(PlacementError, match="expected at most 8 GPUs, got 9 replicas"):
        place_mixed(1, 6, 2, [], [BIG, SMALL])
    with pytest.raises(PlacementError, match=r"3 drafters on nodes of .*: expected at most 2 GPUs"):
        place_mixed(3, 1, 1, on, [BIG, SMALL])


def test_equal_gpus_need_no_labels():
    option = Option("colocated", 5, 32, {"l20": 6}, {"l20": 6}, 90.0, {}, 0.0)
    placement = place_by_plan(option, [SMALL])
    assert (placement.mode, placement.num_actors, placement.drafter_nodes) == ("colocated", 6, ())
    assert actor_options(ActorPool("draft", ShardRows, [], 6)) == {"label_selector": None}


@pytest.mark.parametrize("text", ["", "a", "a=b,a=c", "a=", "=b", "a=b c", "a=in(b,c)", "a=b,,c=d"])
def test_labels_are_checked(text):
    with pytest.raises(InputError, match=r"--drafters-on: expected (NAME=VALUE of a Ray node label|each label once)"):
        parse_labels("--drafters-on", text)


def test_unlabelled_gpus_are_told_from_labelled_ones_and_spellings_from_kinds():
    bare, lower = Node("c", 2, 2, {}), Node("d", 2, 2, {LABEL: "h100"})
    assert selector("gpu", [BIG, SMALL, bare]) == {LABEL: "!in(H100,L20)"}
    assert selector("h100", [BIG, lower, bare]) == {LABEL: "in(H100,h100)"}
    assert selector("gpu", [bare]) == {}
    assert [node.matches(selector("gpu", [BIG, bare])) for node in (BIG, bare)] == [False, True]
    assert [node.matches(selector("h100", [BIG, lower])) for node in (BIG, lower, SMALL)] == [True, True, False]


def test_nodes_without_gpus_do_not_count():
    head = Node("h", 0, 0, {LABEL: "L20", "pool": "big"})
    placement = place_on([head, Node("a", 1, 1, {"pool": "big"}), SMALL], {"pool": "big"}, {LABEL: "L20"}, None, None)
    assert (placement.num_drafters, placement.num_refiners) == (1, 6)


def test_labels_are_read():
    assert parse_labels("--drafters-on", "pool=big, ray.io/region=eu-1") == {"pool": "big", "ray.io/region": "eu-1"}
