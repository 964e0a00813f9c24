"""All uses of the GPUs of one kind: every division among drafting, refining and both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MOST_BY_FOUR = 200  # up to here, GPUs with three uses and idleness are divided one by one: 1.4 million ways
Use = Literal["draft", "refine", "both"]
USES: tuple[Use, ...] = ("draft", "refine", "both")
Array = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Cards:
    """`count` GPUs of a kind: images a second of one GPU in each role (0: not possible), and its price per hour."""

    kind: str
    count: int
    draft: float
    refine: float
    both: float
    price: float = 0.0


@lru_cache(maxsize=16)
def all_counts(count: int, able: tuple[bool, ...], may_idle: bool, step: int = 1) -> Whole:
    """Numbers of equal GPUs that draft, refine and do both, in multiples of `step`: int64 [n, 3]."""
    uses = [use for use, can in enumerate(able) if can]
    free = len(uses) if may_idle or not uses else len(uses) - 1  # the last use gets the rest
    most = count // step
    total, first = np.tril_indices(most + 1)  # sorted by their sum
    pairs = np.column_stack([first, total - first])
    if free < 2:
        found = np.arange(most * free + 1)[:, None]
    elif free == 2:
        found = pairs
    else:
        few = [pairs[: (left + 1) * (left + 2) // 2] for left in range(most, -1, -1)]
        found = np.column_stack([np.repeat(np.arange(most + 1), list(map(len, few))), np.concatenate(few)])
    counts = np.zeros((len(found), 3), np.int64)
    counts[:, uses[:free]] = found[:, :free] * step
    if uses[free:]:
        counts[:, uses[-1]] = count - counts.sum(axis=1)
    return counts


@dataclass(frozen=True)
class Ways:
    """Ways to use all GPUs of one kind: `counts` and their `points`."""

    counts: Whole
    points: Array

    def some(self, keep: NDArray[np.bool_]) -> Ways:
        return Ways(self.counts[keep], self.points[keep])


@dataclass(frozen=True)
class Kind:
    """The GPUs of one kind and their possible uses."""

    cards: Cards
    uses: Sequence[Use]
    may_idle: bool

    @property
    def able(self) -> tuple[bool, ...]:
        return tuple(use in self.uses and max(point[:2]) > 0 for use, point in zip(USES, self.one, strict=True))

    @property
    def one(self) -> Array:
        """The points of one GPU in each use."""
        card = self.cards
        return np.array(
            [(card.draft, 0.0, card.price), (0.0, card.refine, card.price), (card.both, card.both, card.price)]
        )

    @property
    def step(self) -> int:
        """Step in which GPUs are counted: 1, except for very many GPUs with three uses and idleness."""
        return -(-self.cards.count // MOST_BY_FOUR) if self.may_idle and all(self.able) else 1

    @cached_property
    def ends(self) -> Array:
        """The points of all GPUs in one use, and of idleness: all ways lie between them."""
        return np.array([*self.one[list(self.able)] * self.cards.count, np.zeros(3)])

    @cached_property
    def ways(self) -> Ways:
        counts = all_counts(self.cards.count, self.able, self.may_idle, self.step)
        return Ways(counts, counts @ self.one)
