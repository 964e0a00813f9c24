"""Consumers that go away and batches that fail concern nobody else."""

from __future__ import annotations

import asyncio

import pytest

from support.fake_work import FOREVER_S, FakeWork, ask, occupied, queued, run, until
from tandem_workers.endpoint.batching import Batcher
from tandem_workers.endpoint.deadlines import BatchClock


def test_a_consumer_that_goes_away_takes_its_waiting_rows_along_and_nobody_elses():
    async def test() -> None:
        work = FakeWork(held=True)
        batcher = await occupied(work, most=4)
        gone, stays = await queued(batcher, "g0", "g1"), await queued(batcher, "s0", "s1", "s2")
        gone.cancel()
        await until(gone.done)
        assert batcher.waiting == 3
        work.gate.set()
        assert await stays == ["made s0", "made s1", "made s2"]
        assert work.batches[1:] == [["s0", "s1", "s2"]]

    run(test)


def test_a_consumer_that_goes_away_during_its_batch_leaves_the_others_of_the_batch_alone():
    async def test() -> None:
        work = FakeWork(held=True)
        batcher = Batcher(work, most=4, wait_s=FOREVER_S)
        gone, stays = await queued(batcher, "g0", "g1"), await queued(batcher, "s0")
        also = asyncio.create_task(ask(batcher, "t0"))
        await work.has_begun()
        gone.cancel()
        await until(gone.done)
        work.gate.set()
        assert (await stays, await also) == (["made s0"], ["made t0"])
        assert work.batches == [["g0", "g1", "s0", "t0"]]

    run(test)


def test_an_error_reaches_exactly_the_requests_of_its_batch_and_the_next_batch_is_made():
    async def test() -> None:
        work, reports = FakeWork(held=True), []
        batcher = await occupied(work, most=4)
        batcher.observe = reports.append
        tasks = [await queued(batcher, *rows) for rows in (("bad1",), ("near1", "near2", "near3"), ("far1", "far2"))]
        work.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(error) for error in done[:2]] == ["bad1", "bad1"]
        assert all(isinstance(error, ValueError) for error in done[:2])
        assert done[2] == ["made far1", "made far2"]
        assert await ask(batcher, "later") == ["made later"]
        assert [str(report.error) for report in reports] == ["None", "bad1", "None", "None"]

    run(test)


def test_remaining_rows_of_a_failed_request_are_not_batched():
    """Its other rows would be for nothing, and could fail whoever is beside them as well."""

    async def test() -> None:
        work = FakeWork(held=True)
        batcher = await occupied(work, most=4)
        fails = await queued(batcher, "bad0", "f1", "f2", "f3", "bad4")
        other = await queued(batcher, "o0", "o1")
        work.gate.set()
        with pytest.raises(ValueError, match="bad0"):
            await fails
        assert await other == ["made o0", "made o1"]
        assert work.batches[1:] == [["bad0", "f1", "f2", "f3"], ["o0", "o1"]]

    run(test)


def test_the_clock_of_a_batcher_measures_batches_by_key_and_size_and_knows_the_one_in_work():
    async def test() -> None:
        work = FakeWork(held=True)
        batcher = Batcher(work, most=4, wait_s=0.0, clock=BatchClock(0.0, 0.0))
        task = asyncio.create_task(ask(batcher, "a0", "a1", key=5))
        await work.has_begun()
        assert batcher.clock.overdue() == "a batch of 2 images has been in work for more than 0 s"
        work.gate.set()
        await task
        with pytest.raises(ValueError, match="bad"):
            await ask(batcher, "bad", key=6)
        assert batcher.clock.overdue() == ""
        assert {shape: len(d.recent) for shape, d in batcher.clock.deadlines.items()} == {(5, 2): 1, (6, 1): 0}

    run(test)
