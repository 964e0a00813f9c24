"""Which rows of the data a step takes: counted, so that any worker of any run finds them from (seed, step) alone.

The global batch of a step does not depend on the number of workers. Each worker takes its part of it, in micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Stream(IntEnum):
    """Independent random streams of a training run. `TASK` and above are free for tasks."""

    ORDER = 0
    WEIGHTED = 1
    VIEWS = 2
    LABEL_DROPOUT = 3
    TASK = 16


def generator(seed: int, stream: int, number: int) -> torch.Generator:
    """Randomness of a step or an epoch, on the CPU.

    The words are mixed, because torch seeds its CPU generator with the low 32 bits of a seed alone.
    """
    state = np.random.SeedSequence((seed, stream, number)).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True)
class TokenSet:
    """Token maps of labelled pictures, in the order of their index.

    ids: uint16 [n, views, L]. labels: int32 [n]. weights: float64 [n], how often a row is drawn; None: equally often.
    """

    ids: NDArray[np.uint16]
    labels: NDArray[np.int32]
    weights: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def repeats(self, draws: int) -> float:
        """How often, on average over so many draws, the view that is drawn is drawn in all. Rows of larger weight come
        more often, so it is at least draws / (n x views)."""
        weights = np.ones(len(self)) if self.weights is None else self.weights
        share = float(np.square(weights / weights.sum()).sum())
        return draws * share / self.ids.shape[1]


@dataclass(frozen=True)
class StepRows:
    """Rows of a global batch, of a worker's part or of a micro-batch; all [n].

    index: int64, the row of the data. view: int64, which view of it. dropped: bool, whether the label is left out.
    place: int64, the position in the global batch, for randomness of a row that does not depend on the workers.
    """

    index: Tensor
    view: Tensor
    dropped: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, some: slice | Tensor) -> StepRows:
        return StepRows(**{field.name: getattr(self, field.name)[some] for field in fields(self)})


class Batches:
    """The global batches of a run.

    Without weights, rows come in permutations of the whole data, each row once an epoch, and a row's views take turns
    from epoch to epoch. With weights, rows and views are drawn.

    Args:
        seed: another seed gives other batches.
        size: rows of the data.
        batch: rows of a global batch.
        weights: float64 [size], not negative; how often each row is drawn.
        views: views of each row.
        label_dropout: share of rows without their label.
    """

    def __init__(
        self,
        seed: int,
        size: int,
        batch: int,
        weights: NDArray[np.float64] | None = None,
        views: int = 1,
        label_dropout: float = 0.0,
    ) -> None:
        self.seed, self.size, self.batch, self.views, self.label_dropout = seed, size, batch, views, label_dropout
        self.cumulated: Tensor | None = None
        if weights is not None:
            self.cumulated = torch.from_numpy(np.cumsum(weights, dtype=np.float64) / np.sum(weights, dtype=np.float64))
        self.first_views = torch.randint(views, (size,), generator=generator(seed, Stream.VIEWS, 0))
        self.permutations: dict[int, Tensor] = {}  # of the epochs of the last batch

    def rows(self, step: int) -> StepRows:
        """The global batch of a step."""
        index, view = self.drawn(step) if self.cumulated is not None else self.in_epochs(step)
        return StepRows(index, view, self.dropped(step, self.label_dropout), torch.arange(self.batch))

    def part(self, step: int, rank: int, world: int) -> StepRows:
        """The rows of a worker: every `world`-th of the global batch."""
        return self.rows(step)[rank::world]

    def dropped(self, step: int, share: float) -> Tensor:
        """Which rows of a step's batch lose their label: bool [batch]."""
        return torch.rand(self.batch, generator=generator(self.seed, Stream.LABEL_DROPOUT, step)) < share

    def drawn(self, step: int) -> tuple[Tensor, Tensor]:
        """Index and view of rows drawn by weight."""
        assert self.cumulated is not None
        random = generator(self.seed, Stream.WEIGHTED, step)
        uniform = torch.rand(self.batch, generator=random, dtype=torch.float64)
        index = torch.searchsorted(self.cumulated, uniform, right=True).clamp_max(self.size - 1)
        return index, torch.randint(self.views, (self.batch,), generator=random)

    def in_epochs(self, step: int) -> tuple[Tensor, Tensor]:
        """Index and view of the next rows of the epochs, which follow each other without a gap."""
        begin = step * self.batch
        epochs = range(begin // self.size, (begin + self.batch - 1) // self.size + 1)
        self.permutations = {
            epoch: self.permutations[epoch]
            if epoch in self.permutations
            else torch.randperm(self.size, generator=generator(self.seed, Stream.ORDER, epoch))
            for epoch in epochs
        }
        start = begin - epochs[0] * self.size
        index = torch.cat([self.permutations[epoch] for epoch in epochs])[start : start + self.batch]
        epoch_of = torch.arange(begin, begin + self.batch) // self.size
        return index, (self.first_views[index] + epoch_of) % self.views


def micro_batches(rows: int, batch: int, world: int, micro_batch: int | None) -> list[slice]:
    """Slices of a worker's `rows` of a global batch, equally many on every worker, of at most `micro_batch` rows.

    Collective calls need equally many; the last slice of a worker with one row less may be empty.
    """
    most = -(-batch // world)
    count = -(-most // (micro_batch or most))
    size = -(-most // count)
    return [slice(min(i * size, rows), min((i + 1) * size, rows)) for i in range(count)]
