"""The planner's search against brute force over whole cards: with and without prices and a deadline."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from tandem_cluster.planner import MIXED_GAIN, Request, best_of_modes, make_plan
from tandem_cluster.profile_file import read_profile
from tandem_cluster.search import Goal, Search
from tandem_cluster.ways import USES, Cards, Kind, all_counts
from tandem_jobs.cli import main

DATA = Path(__file__).parents[2] / "data"
MODES = {"colocated": ("both",), "split": ("draft", "refine"), "mixed": USES}


def random_cards(rng) -> list[Cards]:
    """Up to four kinds of up to four cards; some cannot take a role, some can take each role but not both."""
    cards, kinds = [], int(rng.integers(1, 5))
    for i in range(kinds):
        draft, refine = (float(rate) for rate in np.exp(rng.uniform(0, 3, 2)))
        lack = rng.random()
        draft, refine = (0.0 if lack < 0.1 else draft), (0.0 if 0.1 <= lack < 0.2 else refine)
        both = 1 / (1 / draft + 1 / refine) if draft and refine and lack < 0.95 else 0.0
        price = float(np.exp(rng.uniform(0, 2)))
        cards.append(Cards(f"k{i}", int(rng.integers(1, 5 if kinds < 4 else 4)), draft, refine, both, price))
    return cards


def all_plans(cards, mode) -> np.ndarray:
    """Images a second drafted and refined, and price, of every assignment of whole cards."""
    points = np.zeros((1, 3))
    for c in cards:
        one = {"draft": (c.draft, 0, c.price), "refine": (0, c.refine, c.price), "both": (c.both, c.both, c.price)}
        uses = np.array([one[use] for use in MODES[mode]])
        counts = np.indices([c.count + 1] * len(uses)).reshape(len(uses), -1).T
        ways = counts[counts.sum(axis=1) <= c.count] @ uses
        points = (points[:, None] + ways).reshape(-1, 3)
    return points


def best_by_force(cards, mode, request: Request) -> tuple[float, float]:
    """(cost, rate) of the cheapest plan in time, if that is asked for; else, or if none is in time, of the fastest."""
    points = all_plans(cards, mode)
    rate = points[:, :2].min(axis=1)
    if request.wants_cheapest:
        with np.errstate(divide="ignore"):
            seconds = request.start_up_s + request.images / rate
        in_time = seconds <= request.deadline_s * (1 + 1e-12)
        if in_time.any():
            cost = points[in_time, 2] * seconds[in_time] / 3600
            return float(cost.min()), float(rate[in_time][cost.argmin()])
    return math.inf, float(rate.max())


def cost_of(option, cards, request) -> float:
    prices = sum(c.price * option.gpus.get(c.kind, 0) for c in cards)
    return prices * (request.start_up_s + request.images / option.images_per_s) / 3600


def test_no_plan_is_missed_in_2400_cases():
    missed = []
    for seed in range(2400):
        rng = np.random.default_rng(seed)
        cards = random_cards(rng)
        gpus, request = {c.kind: c.count for c in cards}, Request({}, 1e6)
        if seed % 2:
            most = Search(cards, USES, Goal()).most
            hours = 1e6 / (max(most, 1) * rng.uniform(0.1, 1.1)) / 3600
            prices = {c.kind: c.price for c in cards}
            request = Request(gpus, 1e6, hours, prices, start_up_s=float(rng.choice([0, 100])))
        found = {option.mode: option for option in best_of_modes(cards, request)}
        simple = (math.inf, 0.0)
        for mode in MODES:
            cost, rate = best_by_force(cards, mode, request)
            if mode != "mixed":
                simple = min(simple[0], cost), max(simple[1], rate)
            elif mode not in found and (simple[0] < math.inf or cost == math.inf):  # too little is gained by mixing
                least = simple[0] * (1 - MIXED_GAIN) if cost < math.inf else simple[1] * (1 + MIXED_GAIN)
                missed += [seed] * (cost < least * (1 - 1e-5) if cost < math.inf else rate > least * (1 + 1e-5))
                continue
            if not rate:
                assert mode not in found
                continue
            option = found[mode]
            assert option.exact is True
            assert all(option.gpus[kind] <= gpus[kind] for kind in option.gpus)
            if cost < math.inf:
                missed += [seed] * (cost_of(option, cards, request) > cost * (1 + 3e-6))
            else:
                missed += [seed] * (option.images_per_s < rate * (1 - 1e-6))
    assert missed == []


def test_three_kinds_of_one_card_draft_draft_and_refine():
    """The best whole split is not a prefix of the kinds in order of preference: 99.6 images/s that way."""
    profiles = [read_profile(str(DATA / f"planner_{name}.json")) for name in "abc"]
    plan = make_plan(profiles, Request(dict.fromkeys("abc", 1), 1e6))
    split = next(option for option in (plan.best, *plan.runners_up) if option.mode == "split")
    assert (split.drafters, split.refiners) == ({"a": 1, "b": 1}, {"c": 1})
    assert split.images_per_s == pytest.approx(108.05)


def test_a_mixed_plan_colocates_the_card_that_is_too_much_for_a_split():
    """Two fast cards that keep pace with each other, and a slow one that would make one side wait."""
    cards = [Cards("a", 1, 100, 10, 1 / 0.11), Cards("b", 1, 10, 100, 1 / 0.11), Cards("c", 1, 40, 40, 20)]
    found = {option.mode: option for option in best_of_modes(cards, Request({}, 1e6))}
    mixed = found["mixed"]
    assert (mixed.drafters, mixed.refiners, mixed.both) == ({"a": 1}, {"b": 1}, {"c": 1})
    assert mixed.images_per_s == pytest.approx(120) and found["split"].images_per_s == pytest.approx(100)
    assert mixed.gpus == {"a": 1, "b": 1, "c": 1} and mixed.busy == {"draft": 1.0, "refine": 1.0}


@pytest.mark.parametrize("share", [None, 0.5, 0.9])
def test_eight_kinds_of_64_cards_are_proven_with_and_without_prices(share):
    """Sizes at which no brute force is possible: the search says by itself that it is complete."""
    rng = np.random.default_rng(3)
    rates = np.exp(rng.uniform(0, 3, (8, 2)))
    prices = np.exp(rng.uniform(0, 0.5, 8)) * rates.sum(axis=1) ** 0.7
    cards = [
        Cards(f"k{i}", 64, a, b, 1 / (1 / a + 1 / b), p) for i, (a, b, p) in enumerate(np.column_stack([rates, prices]))
    ]
    most = Search(cards, USES, Goal()).most
    for uses in (("draft", "refine"), USES):
        found = Search(cards, uses, Goal(share * most, 1e7, 100.0) if share else Goal()).run()
        assert found.proven
        assert found.best is not None and (found.best.sum(axis=1) <= 64).all()
        assert share or most * 0.999 < found.worth <= most


def test_of_equal_costs_the_fastest_plan_is_chosen():
    """Each card does a like share of the work, so one or three of them cost the same."""
    plan = make_plan([read_profile("paper-l20")], Request({"l20": 3}, 1.3e6, 24.0, {"l20": 0.8}, draft_steps=8))
    assert (plan.best.mode, plan.best.gpus) == ("colocated", {"l20": 3})


def test_a_tie_is_called_one_and_rates_that_differ_look_different(tmp_path, capsys):
    """Two like cards make as much split as colocated: the simpler placement is the best."""
    text = (DATA / "planner_a.json").read_text()
    for name, seconds in (("x", "2.0"), ("y", "2.0000001")):
        profile = text.replace('"a"', f'"{name}"').replace("3.4915439170758322", seconds)
        (tmp_path / f"{name}.json").write_text(profile.replace("2.437166793602437", seconds))
    files = [part for name in "xy" for part in ("--profile", str(tmp_path / f"{name}.json"))]
    assert main(["plan", *files, "--gpus", "X:1,y:1", "--images", "1e6"]) == 0
    said = capsys.readouterr().err
    rows = [line.split("│")[1:3] for line in said.splitlines() if "colocated" in line or "split" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [["best", "colocated"], ["tie", "split"]]
    assert "tie: equal within" in said


def test_a_kind_is_the_same_in_capitals_and_is_refused_twice(capsys):
    wish = ["plan", "--profile", "paper-l20", "--images", "1e6"]
    assert main([*wish, "--gpus", "L20:3", "--price", "L20=1"]) == 0
    assert '"gpus": {"l20": 3}' in capsys.readouterr().out
    for flags in (["--gpus", "l20:1,L20:2"], ["--gpus", "l20:1", "--price", "l20=1,L20=2"]):
        assert main([*wish, *flags]) == 2
        assert "expected each kind once, in upper or lower case; got l20 twice" in capsys.readouterr().err


@pytest.mark.parametrize("may_idle", [False, True])
@pytest.mark.parametrize("able", list(itertools.product((False, True), repeat=3)))
def test_every_way_to_share_out_equal_cards_is_there_once(able, may_idle):
    counts = np.indices([7 * can + 1 for can in able]).reshape(3, -1).T
    used = counts.sum(axis=1)
    expected = counts[used <= 7 if may_idle or not any(able) else used == 7]
    assert sorted(map(tuple, all_counts(7, able, may_idle).tolist())) == sorted(map(tuple, expected.tolist()))


@pytest.mark.parametrize(("may_idle", "step"), [(False, 1), (True, 6)])
def test_a_thousand_cards_have_few_enough_ways_to_be_held(may_idle, step):
    """A grid of every count in three uses would be 26 GB."""
    kind = Kind(Cards("a", 1024, 3.1, 7.7, 2.2, 1.0), USES, may_idle)
    assert kind.step == step and len(kind.ways.counts) < 1_500_000
    assert kind.ways.counts.sum(axis=1).max() <= 1024


def test_of_one_kind_a_plan_at_the_bound_is_not_searched_for_others(monkeypatch):
    monkeypatch.setattr(Search, "sweep", lambda *_: pytest.fail("searched"))
    search = Search([Cards("a", 1024, 2.0, 3.0, 1.2)], USES, Goal(), worth=1024 * 1.2).run()
    assert search.proven and search.best is None
