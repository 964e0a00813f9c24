"""The planner keeps within arithmetic: never over the bound, never below colocated, never worse with more GPUs."""

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tandem.errors import InputError, PlacementError
from tandem_cluster.planner import Request, best_of_modes, make_plan, rank
from tandem_cluster.profile_file import Profile, StageTime, read_profile
from tandem_cluster.search import Goal, Search
from tandem_cluster.ways import USES, Cards
from tandem_jobs.cli import main

CLOSE = 1 + 1e-6


@st.composite
def cards(draw, kinds=3, most=5):
    found = []
    for i in range(draw(st.integers(1, kinds))):
        a, b = (draw(st.floats(0.1, 100) | st.just(0.0)) for _ in range(2))
        found.append(Cards(f"k{i}", draw(st.integers(0, most)), a, b, 1 / (1 / a + 1 / b) if a and b else 0.0))
    return found


def options(found):
    return {option.mode: option for option in best_of_modes(found, Request({}, 1e6))}


def rate(option):
    return option.images_per_s if option else 0.0


@settings(deadline=None, max_examples=50)
@given(cards())
def test_no_placement_beats_the_bound(found):
    bound = Search(found, USES, Goal()).most * CLOSE
    assert all(rate(option) <= bound for option in options(found).values())


@settings(deadline=None, max_examples=50)
@given(cards(), st.data())
def test_one_more_gpu_never_hurts(found, data):
    extra = data.draw(st.integers(0, len(found) - 1))
    more = [replace(c, count=c.count + (i == extra)) for i, c in enumerate(found)]
    before, after = options(found), options(more)
    for mode in ("split", "colocated"):
        assert rate(after.get(mode)) * CLOSE >= rate(before.get(mode))
    assert Search(more, USES, Goal()).most * CLOSE >= Search(found, USES, Goal()).most


@settings(deadline=None, max_examples=50)
@given(cards())
def test_roles_go_to_those_who_can_and_use_no_more_gpus_than_there_are(found):
    option = options(found).get("split")
    assume(option is not None)
    by_kind = {c.kind: c for c in found}
    assert all(0 < used <= by_kind[kind].count for kind, used in option.gpus.items())
    assert all(by_kind[kind].draft for kind in option.drafters)
    assert all(by_kind[kind].refine for kind in option.refiners)
    assert option.drafters and option.refiners
    assert max(option.busy.values()) == pytest.approx(1.0)


def profile(kind, draft_s, refine_s, decode_s=0.1, batch=8, **more) -> Profile:
    stages = [
        StageTime(stage="draft", draft_steps=5, batch=batch, seconds=draft_s),
        StageTime(stage="refine", draft_steps=5, batch=batch, seconds=refine_s),
        StageTime(stage="decode", batch=batch, seconds=decode_s),
    ]
    return Profile(name=kind, kind=kind, num_scales=7, stages=tuple(stages), **more)


@given(st.lists(st.tuples(*[st.floats(0.01, 10)] * 2, st.integers(1, 6)), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_a_plan_is_never_worse_than_colocated(kinds):
    profiles = [profile(f"k{i}", draft_s, refine_s) for i, (draft_s, refine_s, _) in enumerate(kinds)]
    gpus = {f"k{i}": n for i, (_, _, n) in enumerate(kinds)}
    plan = make_plan(profiles, Request(gpus, images=1e6))
    together = [o for o in (plan.best, *plan.runners_up) if o.mode == "colocated"]
    assert together
    assert plan.best.images_per_s * CLOSE >= together[0].images_per_s
    assert plan.best.images_per_s <= plan.bound_images_per_s * CLOSE


def test_the_papers_figures_at_n_8():
    """CoDe's N = 8 on three L20: two drafters and one refiner make 90.1 a second, colocated 91.0."""
    plan = make_plan([read_profile("paper-l20")], Request({"l20": 3}, images=1.3e6, draft_steps=8))
    assert (plan.best.mode, round(plan.best.images_per_s, 1)) == ("colocated", 91.0)
    (other,) = plan.runners_up
    assert (other.mode, other.drafters, other.refiners) == ("split", {"l20": 2}, {"l20": 1})
    assert round(other.images_per_s, 1) == 90.1
    assert plan.best.estimated[0].startswith("decode on l20 (profile paper-l20): not published")


def test_kinds_take_the_role_they_are_better_at():
    big, small = profile("big", 1.0, 0.9), profile("small", 8.0, 1.0)
    plan = make_plan([small, big], Request({"small": 4, "big": 4}, images=1e6))
    assert (plan.best.mode, plan.best.drafters, plan.best.refiners) == ("split", {"big": 4}, {"small": 4})
    assert plan.best.images_per_s > plan.runners_up[-1].images_per_s


def test_a_deadline_with_prices_buys_no_more_than_it_needs():
    profiles = [profile("big", 1.0, 0.5), profile("small", 4.0, 2.0)]
    request = Request({"big": 4, "small": 8}, 1e5, deadline_h=24, price_per_h={"big": 8.0, "small": 1.0})
    plan = make_plan(profiles, request)
    assert plan.meets_deadline
    assert set(plan.best.gpus) == {"small"}  # a quarter of the speed at an eighth of the price
    assert plan.best.cost == pytest.approx(plan.best.hours * sum(plan.best.gpus.values()))
    late = make_plan(profiles, Request({"small": 1}, 1e7, deadline_h=1))
    assert not late.meets_deadline


def test_auto_takes_the_fastest_n_that_is_good_enough():
    paper = read_profile("paper-l20")
    for worst, steps in ((2.0, 9), (2.1, 8), (2.3, 7), (3.0, 6)):
        assert make_plan([paper], Request({"l20": 4}, 1e6, max_fid=worst)).best.draft_steps == steps
    assert make_plan([paper], Request({"l20": 4}, 1e6)).best.draft_steps == 7
    with pytest.raises(InputError, match=r"no N and batch .* FID"):
        make_plan([paper], Request({"l20": 4}, 1e6, max_fid=1.0))


def test_what_cannot_be_placed_is_refused():
    only_drafts = Profile(name="d", kind="d", num_scales=7, stages=profile("d", 1, 1).stages[:2])
    with pytest.raises(PlacementError, match="both roles"):
        make_plan([only_drafts], Request({"d": 4}, 1e6))
    with pytest.raises(InputError, match="expected kinds with a profile \\(l20\\), got h100"):
        make_plan([read_profile("paper-l20")], Request({"h100": 1}, 1e6))


def test_gpus_that_would_only_wait_are_left_out_and_fewer_win_a_tie():
    spare = options([Cards("a", 3, 1.0, 1.0, 0.5)])["split"]
    assert spare.gpus == {"a": 2}
    wide = replace(spare, drafters={"a": 2})
    assert rank([wide, spare], Request({"a": 3}, 1e6)) == [spare, wide]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "l20"], "expected KIND:X with X a whole number above 0, got 'l20'"),
        (["--gpus", "l20:0"], "got 'l20:0'"),
        (["--gpus", f"l20:{10**12}"], f"--gpus: expected at most 1024 of a kind, got l20:{10**12}"),
        (["--gpus", "l20:2", "--images", "1e12"], f"--images: expected at most {10**9}, got"),
        (["--gpus", "l20:2", "--deadline", "soon"], "--deadline: expected a time such as 90m, 24h or 2d, got 'soon'"),
        (["--gpus", "l20:2", "--price", "h100=2"], "--price: expected kinds of --gpus"),
        (["--gpus", "l20:2", "--profile", "none.json"], "cannot read none.json"),
        (["--gpus", "l20:2", "--draft-steps", "3"], "no N and batch"),
    ],
)
def test_wrong_wishes_get_one_line(flags, message, capsys):
    base = ["--profile", "paper-l20"] if "--profile" not in flags else []
    assert main(["plan", *base, "--images", "1e6", *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_a_table_and_one_json_line(capsys):
    assert main(["plan", "--profile", "paper-l20", "--gpus", "l20:6", "--images", "1.3e6", "--price", "l20=0.8"]) == 0
    said = capsys.readouterr()
    best = json.loads(said.out)["best"]
    assert best["cost"] == pytest.approx(best["hours"] * 0.8 * 6)
    assert "estimated, not measured: draft on l20 (profile paper-l20): " in said.err and "bound" in said.err
