"""Dynamic batching: rows of many requests share one forward.

A batch is formed when the model is free, never before, from all rows that have arrived by then. (Ray Serve's own
decorator forms batches while the model is busy, so that a steady stream makes small ones, and it supports neither keys
nor requests that must run alone.) Rows of one batch share a key, that of the oldest row. Pure asyncio.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tandem_workers.endpoint.deadlines import BatchClock

RowT = TypeVar("RowT")
ValueT = TypeVar("ValueT")
InT = TypeVar("InT", contravariant=True)
OutT = TypeVar("OutT", covariant=True)


class BatchWork(Protocol[InT, OutT]):
    """The work on a batch: yields (position in the batch, value), any number of times for each row."""

    def __call__(self, rows: Sequence[InT], size: int) -> Iterator[tuple[int, OutT]]:
        """`size` >= len(rows) is the padded batch size."""


@dataclass(frozen=True)
class BatchReport:
    """One batch: rows, padded size, seconds that the oldest row waited, seconds of work, and the error if it failed."""

    rows: int
    size: int
    wait_s: float
    work_s: float
    error: Exception | None = None


@dataclass(eq=False)
class Ticket(Generic[RowT]):
    """One request in the queue. Its rows may go into several batches."""

    rows: Sequence[RowT]
    key: Hashable
    alone: bool
    arrived: float
    events: asyncio.Queue[tuple[int, object]]
    next: int = 0  # the first row that has not been put into a batch
    left: int = 0  # rows that are not finished

    @property
    def waiting(self) -> int:
        return len(self.rows) - self.next


FINISHED = -1  # position that stands for the end of a request
MORE_PATIENCE = 5.0


@dataclass(eq=False)
class Batcher(Generic[RowT, ValueT]):
    """Runs `work` in a thread of its own on batches of at most `most` rows, padded to a power of two.

    Args:
        wait_s: longest wait to fill a batch, counted from its oldest row.
        elsewhere: returns the number of requests at other replicas. Under load more rows will come soon, so the wait
            grows up to 1 + MORE_PATIENCE times, its maximum once there are as many requests as rows in a batch.
        observe: called with the report of every batch.
        initializer: called once in the model's thread before the first batch.
        clock: measures the batches by key and size.
        turn: lock held while the model works. Batchers whose models share a device share it and take turns; a batch
            is formed when its turn comes.

    A request that is `alone` shares no batch with others, and all its batches have the size `most`: its results then
    depend only on the request. Use a batcher within one event loop.
    """

    work: BatchWork[RowT, ValueT]
    most: int
    wait_s: float
    observe: Callable[[BatchReport], None] = lambda report: None
    elsewhere: Callable[[], int] = lambda: 0
    initializer: Callable[[], None] = lambda: None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    clock: BatchClock = field(default_factory=lambda: BatchClock(math.inf, math.inf))
    queue: deque[Ticket[RowT]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="model", initializer=self.initializer)
        self.changed = asyncio.Event()
        self.loop_task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of rows that are in no batch yet."""
        return sum(ticket.waiting for ticket in self.queue)

    async def run(self, rows: Sequence[RowT], key: Hashable, alone: bool = False) -> AsyncIterator[tuple[int, ValueT]]:
        """Yield (position in `rows`, value) as the work produces them. Errors of the work are raised.

        If the consumer goes away, its waiting rows leave the queue, and values of its running rows are dropped.
        """
        ticket: Ticket[RowT] = Ticket(rows, key, alone, time.monotonic(), asyncio.Queue(), left=len(rows))
        self.queue.append(ticket)
        self.changed.set()
        if self.loop_task is None or self.loop_task.done():
            self.loop_task = asyncio.create_task(self.serve())
        try:
            while True:
                position, value = await ticket.events.get()
                if position == FINISHED:
                    if isinstance(value, Exception):
                        raise value
                    return
                yield position, value  # type: ignore[misc]
        finally:
            ticket.next = len(rows)
            self.tidy()

    async def serve(self) -> None:
        """Form batches and work on them one by one, forever."""
        while True:
            await self.wait_for_batch()
            async with self.turn:
                if chosen := self.next_batch():  # none if all waiting requests were cancelled
                    await self.make(chosen)

    async def make(self, batch: list[tuple[Ticket[RowT], int]]) -> None:
        """Take a batch out of the queue, work on it, and mark requests that are finished."""
        for ticket, _ in batch:
            ticket.next += 1
        self.tidy()
        size = self.most if batch[0][0].alone else padded(len(batch), self.most)
        began = time.monotonic()
        wait_s = began - min(ticket.arrived for ticket, _ in batch)
        fault: Exception | None = None
        loop = asyncio.get_running_loop()
        try:
            with self.clock.batch((batch[0][0].key, size), len(batch)):
                await loop.run_in_executor(self.pool, self.work_on, batch, size, loop)
        except Exception as error:
            fault = error
        for ticket, _ in batch:
            ticket.left -= 1
            if fault is not None:
                ticket.next = len(ticket.rows)  # its other rows are no longer needed
            if fault is not None or ticket.left == 0:
                ticket.events.put_nowait((FINISHED, fault))
        self.tidy()
        self.observe(BatchReport(len(batch), size, wait_s, time.monotonic() - began, fault))

    def work_on(self, batch: list[tuple[Ticket[RowT], int]], size: int, loop: asyncio.AbstractEventLoop) -> None:
        """In the model's thread: pass every value to its request as soon as it is computed."""
        rows = [ticket.rows[position] for ticket, position in batch]
        for place, value in self.work(rows, size):
            ticket, position = batch[place]
            loop.call_soon_threadsafe(ticket.events.put_nowait, (position, value))

    async def wait_for_batch(self) -> None:
        """Wait until there is a full batch, or an incomplete one that has waited long enough."""
        while True:
            self.changed.clear()
            if self.next_batch():
                return
            patience = self.patience(self.queue[0]) if self.queue else None
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), patience)

    def next_batch(self) -> list[tuple[Ticket[RowT], int]]:
        """The rows to take now; none while waiting to fill a batch."""
        if not self.queue:
            return []
        oldest = self.queue[0]
        return self.choose(oldest) if oldest.alone or self.patience(oldest) <= 0 else self.full_batch()

    def patience(self, oldest: Ticket[RowT]) -> float:
        """Seconds that an incomplete batch may still wait."""
        return oldest.arrived + self.wait_s * self.stretch() - time.monotonic()

    def full_batch(self) -> list[tuple[Ticket[RowT], int]]:
        """The first full batch of any key, or none."""
        first_of_key = {ticket.key: ticket for ticket in reversed(self.queue) if not ticket.alone}
        full = (chosen for ticket in first_of_key.values() if len(chosen := self.choose(ticket)) == self.most)
        return next(full, [])

    def stretch(self) -> float:
        """Factor by which load lengthens the wait."""
        return 1 + MORE_PATIENCE * min(1.0, self.elsewhere() / self.most)

    def tidy(self) -> None:
        """Remove requests without a waiting row from the queue."""
        self.queue = deque(ticket for ticket in self.queue if ticket.waiting)

    def choose(self, oldest: Ticket[RowT]) -> list[tuple[Ticket[RowT], int]]:
        """The rows that can share a batch with the oldest one, in order of arrival."""
        company = [oldest] if oldest.alone else [t for t in self.queue if t.key == oldest.key and not t.alone]
        waiting = ((ticket, position) for ticket in company for position in range(ticket.next, len(ticket.rows)))
        return [pair for pair, _ in zip(waiting, range(self.most), strict=False)]


def padded(rows: int, most: int) -> int:
    """Batch size for a number of rows: the next power of two, at most `most`. Few shapes, so that graphs are reused."""
    return min(most, 1 << (rows - 1).bit_length())


def sizes_of_batches(most: int) -> list[int]:
    """All sizes that batches of at most `most` rows can have."""
    return sorted({padded(rows, most) for rows in range(1, most + 1)})
