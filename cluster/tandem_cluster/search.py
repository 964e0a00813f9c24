"""The best use of whole GPUs: branch and bound over the kinds, with fractions of GPUs as the bound. No Ray, no device.

A GPU of a kind drafts a images a second, refines b, or does both for c. The roles' sums are u = sum(a) + sum(c) and
v = sum(b) + sum(c), and the plan makes min(u, v). Kinds are decided one after the other, all ways at once in arrays.

The bound is the dual of the linear program. For weights y1, y2 >= 0 and g >= 0 the remaining GPUs add at most to
y1 u + y2 v - g price what each of them adds at its own best. A partial plan is dropped if, for one of several such
cuts, even that leaves it no better than the best known plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tandem_cluster.ways import Array, Cards, Kind, Use, Ways, Whole

EXACT_TO = 1e-7  # relative gain from which a plan counts as better: stage times are known to a few thousandths at best
GAPS = (1e-4, 1e-3, 1e-2, 0.1, math.inf)  # relative gaps below the bound within which a first plan is sought
WIDTHS = (500, 5_000, 50_000)  # partial plans kept after each kind; the next width if the last one dropped some
MOST_CUTS = 24
CHUNK = 2_000_000  # pairs of a partial plan and a use of a kind that are computed at once
NOTHING = -math.inf  # worth of no plan


@dataclass(frozen=True)
class Goal:
    """The objective: the fastest plan or, with `images`, the cheapest that makes at least `least` images a second.

    A run costs (price + time_price) * (start_up_s + images / rate): with a tiny `time_price`, the faster of two plans
    of equal cost wins.
    """

    least: float = 0.0
    images: float = 0.0
    start_up_s: float = 0.0
    time_price: float = 0.0

    @property
    def is_cheapest(self) -> bool:
        return self.images > 0

    def worth(self, points: Array) -> Array:
        """Worth of plans (u, v, price) [n, 3]: images a second, or the negative cost; NOTHING if too slow."""
        rate = points[:, :2].min(axis=1)
        enough = (rate > 0) & (rate >= self.least * (1 - 1e-12))
        if not self.is_cheapest:
            return np.where(enough, rate, NOTHING)
        worth = np.full(len(points), NOTHING)
        worth[enough] = -(points[enough, 2] + self.time_price) * (self.start_up_s + self.images / rate[enough])
        return worth

    def price_of(self, cost: float, rate: Array) -> Array:
        """The price at which a run at this rate has this cost: concave in the rate."""
        return cost * rate / (self.start_up_s * rate + self.images) - self.time_price


@dataclass(frozen=True)
class Cuts:
    """Cuts: weights [j, 3] of u, v and price, and the levels [j] that a plan must exceed."""

    weights: Array
    levels: Array

    def most(self, kinds: Sequence[Kind]) -> Array:
        """The most that each kind can add to each cut: [kinds, j]."""
        return np.array([(kind.ends @ self.weights.T).max(axis=0) for kind in kinds])

    def room(self, kinds: Sequence[Kind]) -> Array:
        """By how much fractions of GPUs could exceed each level."""
        return self.most(kinds).sum(axis=0) - self.levels


@dataclass
class Search:
    """One search. `worth` is initially that of a plan that is already known.

    Afterwards `best` is int64 [kinds, 3], the GPUs in each use, or None if no plan is better than the known one;
    `proven` is true if no plan is better by more than EXACT_TO.
    """

    cards: Sequence[Cards]
    uses: Sequence[Use]
    goal: Goal
    worth: float = NOTHING
    best: Whole | None = None
    proven: bool = False
    kinds: list[Kind] = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = [Kind(cards, self.uses, self.goal.is_cheapest) for cards in self.cards]

    def run(self) -> Search:
        """First search close to the bound for any plan; then widen until nothing is dropped."""
        if self.worth > NOTHING and self.is_at_bound():
            self.proven = True
            return self
        for gap in GAPS:
            floor = self.bound - gap * abs(self.bound) if self.bound else NOTHING
            self.proven = self.sweep(WIDTHS[0], floor) and bool(self.worth >= floor)
            if self.worth > NOTHING or self.proven:
                break
        for width in WIDTHS:
            self.proven = self.proven or self.sweep(width, self.worth)
        return self

    @cached_property
    def most(self) -> float:
        """Images a second if GPUs could be divided into fractions: an upper bound for every plan."""
        return float(Cuts(self.balances, np.zeros(len(self.balances))).room(self.kinds).min())

    @cached_property
    def bound(self) -> float:
        """Worth of a plan of fractions of GPUs; 0 if unknown."""
        goal, y = self.goal, self.price_weights
        if not goal.is_cheapest:
            return self.most
        if not len(y) or not goal.least:
            return 0.0
        below = Cuts(np.column_stack([y, -np.ones(len(y))]), y.sum(axis=1) * goal.least).room(self.kinds)
        price = max(0.0, -float(below.min()))
        return -(price + goal.time_price) * (goal.start_up_s + goal.images / goal.least)

    @cached_property
    def balances(self) -> Array:
        """Weights of sum 1 at which some kind is equally good in both roles; the tightest gives the bound."""
        shares = {0.0, 1.0} | {c.refine / (c.draft + c.refine) for c in self.cards if c.draft + c.refine}
        return np.array([(share, 1 - share, 0.0) for share in sorted(shares)])

    @cached_property
    def price_weights(self) -> Array:
        """(y1, y2) [n, 2] at which kinds are worth their price or equally good in both roles: corners of the dual."""
        first = [c.price / c.draft for c in self.cards if c.draft]
        second = [c.price / c.refine for c in self.cards if c.refine]
        ratios = [c.draft / c.refine for c in self.cards if c.draft and c.refine]
        pairs = {(a, b) for a in (*first, 0.0) for b in (*second, 0.0)}
        pairs |= {(a, a * r) for a in first for r in ratios} | {(b / r, b) for b in second for r in ratios}
        return np.array([pair for pair in sorted(pairs) if sum(pair) > 0]).reshape(-1, 2)

    def cuts(self, floor: float) -> Cuts:
        """The tightest cuts that all plans better than `floor` exceed."""
        goal, floor = self.goal, better(max(floor, self.worth))
        if not goal.is_cheapest:
            return Cuts(self.balances, np.full(len(self.balances), floor))
        fast = Cuts(self.balances, np.full(len(self.balances), goal.least * (1 - 1e-9)))
        if floor == NOTHING:
            return fast
        y, slope = self.price_weights, self.price_weights.sum(axis=1)
        # A tangent of this slope lies above the concave `price_of`
        if goal.start_up_s:
            touch = (np.sqrt(-floor * goal.images / slope) - goal.images) / goal.start_up_s
        else:
            touch = np.where(slope > -floor / goal.images, 0.0, np.inf)
        touch = np.clip(touch, goal.least, max(goal.least, self.most))
        levels = slope * touch - goal.price_of(-floor, touch)
        scale = y.max()  # of rates against prices
        found = Cuts(
            np.vstack([fast.weights * scale, np.column_stack([y, -np.ones(len(y))])]),
            np.append(fast.levels * scale, levels),
        )
        tight = np.argsort(found.room(self.kinds), kind="stable")[:MOST_CUTS]
        return Cuts(found.weights[tight], found.levels[tight])

    def sweep(self, width: int, floor: float) -> bool:
        """Decide the kinds one by one. Returns whether no plan better than `floor` and `best` can have been dropped."""
        cuts = self.cuts(floor)
        most = cuts.most(self.kinds)
        others = most.sum(axis=0) - most - cuts.levels
        possible = [  # uses that such a plan may contain, whatever the other kinds do
            kind.ways.some((kind.ways.points @ cuts.weights.T + rest > 0).all(axis=1))
            for kind, rest in zip(self.kinds, others, strict=True)
        ]
        order = sorted(range(len(possible)), key=lambda i: len(possible[i].points))
        points, picks, complete = np.zeros((1, 3)), np.zeros((1, 0), np.int64), True
        rest = most.sum(axis=0) - cuts.levels
        for kind in order[:-1]:
            rest = rest - most[kind]
            points, picks, all_kept = self.extend(points, picks, possible[kind], cuts.weights, rest, width)
            complete &= all_kept
        self.finish(points, picks, order, possible)
        return (complete and all(kind.step == 1 for kind in self.kinds)) or self.is_at_bound()

    def extend(
        self, points: Array, picks: Whole, ways: Ways, weights: Array, rest: Array, width: int
    ) -> tuple[Array, Whole, bool]:
        """Extend every partial plan by every use of one more kind, if the result can exceed the cuts. Also returns
        whether all of these were kept. `rest` is the most that the remaining kinds add, less the levels."""
        found = [(np.zeros((0, 3)), np.zeros((0, picks.shape[1] + 1), np.int64), np.zeros(0))]
        for some in chunks(len(points), len(ways.points)):
            one, other = points[some] @ weights.T + rest, ways.points @ weights.T
            room = one[:, :1] + other[:, 0]
            for j in range(1, len(weights)):
                np.minimum(room, one[:, j : j + 1] + other[:, j], out=room)
            before, way = np.nonzero(room > 0)
            chosen = np.column_stack([picks[some][before], way])
            found.append((points[some][before] + ways.points[way], chosen, room[before, way]))
        points, picks, room = (np.concatenate(parts) for parts in zip(*found, strict=True))
        keep = self.undominated(points)
        widest = keep[np.argsort(-room[keep], kind="stable")[:width]]
        return points[widest], picks[widest], len(widest) == len(keep)

    def undominated(self, points: Array) -> Whole:
        """Partial plans that no other beats in both roles; if prices count, only duplicates are removed."""
        if self.goal.is_cheapest:
            return np.unique(points.round(9), axis=0, return_index=True)[1]
        order = np.lexsort((-points[:, 1], -points[:, 0]))
        refined = points[order, 1]
        return order[refined > np.maximum.accumulate(np.append(NOTHING, refined))[:-1]]

    def finish(self, points: Array, picks: Whole, order: Sequence[int], possible: Sequence[Ways]) -> None:
        """Add the last kind and keep the best whole plan."""
        last = possible[order[-1]]
        for some in chunks(len(points), len(last.points)):
            worth = self.goal.worth((points[some][:, None] + last.points).reshape(-1, 3))
            at = int(worth.argmax()) if len(worth) else -1
            if at < 0 or worth[at] <= better(self.worth):
                continue
            plan, way = divmod(at, len(last.points))
            self.worth, self.best = float(worth[at]), np.zeros((len(self.cards), 3), np.int64)
            for kind, pick in zip(order, [*picks[some][plan], way], strict=True):
                self.best[kind] = possible[kind].counts[pick]
            if self.is_at_bound():
                return

    def is_at_bound(self) -> bool:
        """Whether the best plan reaches the bound."""
        return bool((self.cuts(self.worth).room(self.kinds) <= 0).any())


def better(worth: float) -> float:
    """The worth that a plan must exceed to count as better than one of this worth."""
    return worth + EXACT_TO * abs(worth) if worth > NOTHING else worth


def chunks(rows: int, columns: int) -> list[slice]:
    """Slices of rows such that rows x columns stays within CHUNK; none if there are no pairs."""
    step = max(1, CHUNK // max(1, columns))
    return [slice(start, start + step) for start in range(0, rows if columns else 0, step)]
