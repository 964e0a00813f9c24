"""Dynamic batching: rows of many requests meet in one forward.

A batch is cut when the model is free, never before, so that whatever has arrived by then goes together. (Ray Serve's
own decorator cuts batches while the model works, which makes small ones of a steady stream, and knows neither keys
nor requests that have to run alone.) Rows of one batch share a key; the oldest row decides which. Pure asyncio.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

RowT = TypeVar("RowT")
ValueT = TypeVar("ValueT")
InT = TypeVar("InT", contravariant=True)
OutT = TypeVar("OutT", covariant=True)


class Work(Protocol[InT, OutT]):
    """What is done to a batch: yields (position in the batch, value), as often for each row as it likes."""

    def __call__(self, rows: Sequence[InT], size: int) -> Iterator[tuple[int, OutT]]:
        """`size` >= len(rows) is the padded batch size."""


@dataclass(frozen=True)
class BatchReport:
    """One batch: rows, the size they were padded to, seconds waited by the oldest and worked, and what went wrong."""

    rows: int
    size: int
    wait_s: float
    work_s: float
    error: Exception | None = None


@dataclass(eq=False)
class Ticket(Generic[RowT]):
    """One request in the queue. Its rows may go in several batches."""

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
        wait_s: so long an incomplete batch waits for company before it starts, counted from its oldest row.
        elsewhere: requests that others work on meanwhile. Where load is that high more will come soon: the wait is up
            to 1 + MORE_PATIENCE times as long, in full for as many as a batch has rows.
        observe: told of every batch.
        initializer: called in the model's thread before it works.
        turn: held while the model works. Batchers whose models are on one device share it and work by turns; a batch
            is cut when its turn comes.

    A request that is `alone` shares no batch with others, and its batches all have the size `most`: what comes out
    then depends on the request alone. To be used within one event loop.
    """

    work: Work[RowT, ValueT]
    most: int
    wait_s: float
    observe: Callable[[BatchReport], None] = lambda report: None
    elsewhere: Callable[[], int] = lambda: 0
    initializer: Callable[[], None] = lambda: None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    queue: deque[Ticket[RowT]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="model", initializer=self.initializer)
        self.changed = asyncio.Event()
        self.loop_task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Rows that are in no batch yet."""
        return sum(ticket.waiting for ticket in self.queue)

    async def run(self, rows: Sequence[RowT], key: Hashable, alone: bool = False) -> AsyncIterator[tuple[int, ValueT]]:
        """Yields (position in `rows`, value) as the work makes them. Raises what the work raises.

        If the consumer goes away, rows that wait leave the queue, and values of rows under way are dropped.
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
        """Cuts batches and works on them, one after the other, for ever."""
        while True:
            await self.wait_for_batch()
            async with self.turn:
                if chosen := self.next_batch():  # else those who asked have left meanwhile
                    await self.make(chosen)

    async def make(self, batch: list[tuple[Ticket[RowT], int]]) -> None:
        """Takes a batch out of the queue, works on it, and tells its requests when they are finished."""
        for ticket, _ in batch:
            ticket.next += 1
        self.tidy()
        size = self.most if batch[0][0].alone else padded(len(batch), self.most)
        began = time.monotonic()
        wait_s = began - min(ticket.arrived for ticket, _ in batch)
        fault: Exception | None = None
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self.pool, self.work_on, batch, size, loop)
        except Exception as error:
            fault = error
        for ticket, _ in batch:
            ticket.left -= 1
            if fault is not None:
                ticket.next = len(ticket.rows)  # its other rows are of no use any more
            if fault is not None or ticket.left == 0:
                ticket.events.put_nowait((FINISHED, fault))
        self.tidy()
        self.observe(BatchReport(len(batch), size, wait_s, time.monotonic() - began, fault))

    def work_on(self, batch: list[tuple[Ticket[RowT], int]], size: int, loop: asyncio.AbstractEventLoop) -> None:
        """In the model's thread: hands every value to its request as soon as it is there."""
        rows = [ticket.rows[position] for ticket, position in batch]
        for place, value in self.work(rows, size):
            ticket, position = batch[place]
            loop.call_soon_threadsafe(ticket.events.put_nowait, (position, value))

    async def wait_for_batch(self) -> None:
        """Until there is a full batch, or an incomplete one that has waited long enough."""
        while True:
            self.changed.clear()
            if self.next_batch():
                return
            patience = self.patience(self.queue[0]) if self.queue else None
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), patience)

    def next_batch(self) -> list[tuple[Ticket[RowT], int]]:
        """The rows to take now, none while company is waited for."""
        if not self.queue:
            return []
        oldest = self.queue[0]
        return self.choose(oldest) if oldest.alone or self.patience(oldest) <= 0 else self.full_batch()

    def patience(self, oldest: Ticket[RowT]) -> float:
        """Seconds that an incomplete batch still waits for company."""
        return oldest.arrived + self.wait_s * self.stretch() - time.monotonic()

    def full_batch(self) -> list[tuple[Ticket[RowT], int]]:
        """The first full batch of any key, or none."""
        first_of_key = {ticket.key: ticket for ticket in reversed(self.queue) if not ticket.alone}
        full = (chosen for ticket in first_of_key.values() if len(chosen := self.choose(ticket)) == self.most)
        return next(full, [])

    def stretch(self) -> float:
        """By how much the load makes waiting for company longer."""
        return 1 + MORE_PATIENCE * min(1.0, self.elsewhere() / self.most)

    def tidy(self) -> None:
        """Requests without a waiting row leave the queue."""
        self.queue = deque(ticket for ticket in self.queue if ticket.waiting)

    def choose(self, oldest: Ticket[RowT]) -> list[tuple[Ticket[RowT], int]]:
        """The rows that go together with the oldest one, in order of arrival."""
        company = [oldest] if oldest.alone else [t for t in self.queue if t.key == oldest.key and not t.alone]
        waiting = ((ticket, position) for ticket in company for position in range(ticket.next, len(ticket.rows)))
        return [pair for pair, _ in zip(waiting, range(self.most), strict=False)]


def padded(rows: int, most: int) -> int:
    """Batch size for so many rows: the next power of two, at most `most`. Few shapes, to be captured."""
    return min(most, 1 << (rows - 1).bit_length())


def sizes_of_batches(most: int) -> list[int]:
    """All sizes that batches of at most `most` rows can have."""
    return sorted({padded(rows, most) for rows in range(1, most + 1)})
