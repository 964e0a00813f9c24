"""A work of plain Python for batchers, and ways to ask them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from typing import Any

from tandem_workers.endpoint.batching import Batcher

PATIENCE_S = 20.0  # of a test that would hang otherwise


FOREVER_S = 3600.0


class FakeWork:
    """Remembers its batches. Held, it lets none through; a row named 'bad...' fails its batch."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[list[str]] = []
        self.sizes: list[int] = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        if not held:
            self.gate.set()

    def __call__(self, rows: Sequence[str], size: int) -> Iterator[tuple[int, str]]:
        self.batches.append(list(rows))
        self.sizes.append(size)
        self.begun.release()
        assert self.gate.wait(PATIENCE_S)
        for place, row in enumerate(rows):
            if row.startswith("bad"):
                raise ValueError(row)
            yield place, f"made {row}"

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE_S)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), PATIENCE_S))


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


async def ask(batcher: Batcher, *rows: str, key: Hashable = "k", alone: bool = False) -> list[str]:
    """What one request gets, by position."""
    found: list[str | None] = [None] * len(rows)
    async for position, value in batcher.run(rows, key, alone):
        assert found[position] is None, "a row came twice"
        found[position] = value
    return found


async def queued(batcher: Batcher, *rows: str, **how: Any) -> asyncio.Task[list[str]]:
    """A request that stands in the queue when this returns."""
    before = batcher.waiting
    task = asyncio.create_task(ask(batcher, *rows, **how))
    await until(lambda: batcher.waiting == before + len(rows))
    return task


async def occupied(work: FakeWork, most: int, wait_s: float = 0.0) -> Batcher:
    """A batcher whose model is at work on something else until the gate opens."""
    batcher = Batcher(work, most, wait_s)
    batcher.occupant = asyncio.create_task(ask(batcher, *(f"o{i}" for i in range(most)), key="occupant"))
    await work.has_begun()
    return batcher
