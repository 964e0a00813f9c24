"""How long something may take, from its own measured times. Pure Python."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

RECENT = 32  # measured times that count
MAX_SHAPES = 256  # shapes with times of their own; the least recently used are forgotten


@dataclass
class Deadline:
    """A multiple of the longest recent time, within bounds.

    Attributes:
        multiple: of the longest recent time.
        least_s, most_s: bounds. With fewer than `needed` times the deadline is `most_s`: first times include set-up.
    """

    multiple: float
    least_s: float
    most_s: float
    needed: int = 2
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def seconds(self) -> float:
        """The deadline; never less than twice the longest recent time, whatever the bounds."""
        if len(self.recent) < self.needed:
            return self.most_s
        longest = max(self.recent)
        return max(min(max(self.multiple * longest, self.least_s), self.most_s), 2 * longest)


@dataclass
class BatchClock:
    """Measures the batches of one stage by their shape, and says when one runs far longer than those before.

    A shape that has not been measured twice (its kernels may have to be compiled, its graph to be captured) has the
    longest deadline.
    """

    least_s: float
    most_s: float
    multiple: float = 10.0
    deadlines: OrderedDict[Hashable, Deadline] = field(default_factory=OrderedDict)
    running: tuple[float, float, int] | None = None  # since when, deadline, rows

    @contextmanager
    def batch(self, shape: Hashable, rows: int) -> Iterator[None]:
        """Context manager around one batch; failed ones are not measured."""
        deadline = self.deadlines.setdefault(shape, Deadline(self.multiple, self.least_s, self.most_s))
        self.deadlines.move_to_end(shape)
        if len(self.deadlines) > MAX_SHAPES:
            self.deadlines.popitem(last=False)
        began = time.monotonic()
        self.running = began, deadline.seconds, rows
        try:
            yield
            deadline.recent.append(time.monotonic() - began)
        finally:
            self.running = None

    def overdue(self) -> str:
        """What is overdue, in words; empty: nothing."""
        if self.running is None:
            return ""
        began, seconds, rows = self.running
        if time.monotonic() - began <= seconds:
            return ""
        return f"a batch of {rows} image{'s' * (rows != 1)} has been in work for more than {seconds:.0f} s"
