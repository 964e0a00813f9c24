"""A load generator for the endpoint: a number of clients that send requests one by one, or a rate of requests."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import aiohttp

Body = Callable[[int], dict[str, Any]]  # of the request with this number
TIMEOUT_S = 120.0
PROBE_EVERY_S = 0.1


@dataclass
class Answer:
    """One response: status (0: none), start and end of the request, and the seconds of its stages."""

    status: int
    began_s: float
    ended_s: float
    retry_after: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    cause: str = ""

    @property
    def lasted_s(self) -> float:
        return self.ended_s - self.began_s


def closed_loop(url: str, body: Body, clients: int, seconds: float) -> list[Answer]:
    """Load by `clients` that each send the next request when the last one is answered, for a given time."""

    async def work(session: aiohttp.ClientSession) -> list[Answer]:
        answers: list[Answer] = []
        until = time.monotonic() + seconds
        numbers = iter(range(1 << 30))

        async def client() -> None:
            while time.monotonic() < until:
                answers.append(await send(session, url, body(next(numbers))))

        await asyncio.gather(*(client() for _ in range(clients)))
        return answers

    return run(work)


def overload(url: str, body: Body, per_s: float, seconds: float) -> tuple[list[Answer], list[Answer]]:
    """Requests at a steady rate, whatever the responses; then one client that retries until it gets images."""
    probes: list[Answer] = []

    async def work(session: aiohttp.ClientSession) -> list[Answer]:
        began, tasks = time.monotonic(), []
        for number in range(round(per_s * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_s - time.monotonic()))
            tasks.append(asyncio.create_task(send(session, url, body(number))))
        until = time.monotonic() + TIMEOUT_S
        while not probes or (probes[-1].status != 200 and time.monotonic() < until):
            probes.append(await send(session, url, body(len(probes))))
            await asyncio.sleep(PROBE_EVERY_S)
        return list(await asyncio.gather(*tasks))

    return run(work), probes


def run(work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, list[Answer]]]) -> list[Answer]:
    async def in_session() -> list[Answer]:
        limits = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=limits, connector=aiohttp.TCPConnector(limit=0)) as session:
            return await work(session)

    return asyncio.run(in_session())


async def send(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Answer:
    began = time.monotonic()
    try:
        async with session.post(f"{url}/v1/images/generations", json=body) as answer:
            text = await answer.read()
            retry = "Retry-After" in answer.headers
            made = Answer(answer.status, began, time.monotonic(), retry)
            if answer.status == 200:
                made.seconds = json.loads(text)["tandem"]["seconds"]
            return made
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        return Answer(0, began, time.monotonic(), cause=repr(error))


def images_per_s(answers: list[Answer], n: int, skip_s: float) -> float:
    """Images answered a second between the first `skip_s` and the end of the load."""
    start = min(answer.began_s for answer in answers) + skip_s
    end = max(answer.began_s for answer in answers)  # from here on fewer and fewer clients were at work
    return n * sum(answer.status == 200 and start < answer.ended_s <= end for answer in answers) / (end - start)


def statuses(answers: list[Answer]) -> dict[str, int]:
    """Number of responses by status; "none": no response."""
    return {str(status or "none"): count for status, count in sorted(Counter(a.status for a in answers).items())}


def median_ms(values: list[float]) -> float:
    return round(1000 * statistics.median(values), 1)
