"""Concurrent requests to S3."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(action: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """Results of `action` for each item, in order. The first error is raised and cancels items not yet begun.

    Otherwise each thread would send another request to a store that does not respond, and wait again.
    """
    with ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(action, item) for item in items]
        try:
            done, _ = wait(calls, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
    for call in done:
        call.result()
    return [call.result() for call in calls]
