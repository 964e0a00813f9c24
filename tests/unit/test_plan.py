"""Placement is arithmetic: it never takes more GPUs than there are, and says why it chose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.plan import place
from tandem.errors import PlacementError

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
