"""Rows of many requests meet in one batch, and each request gets its own back. A work of plain Python stands in."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from support.fake_work import FOREVER_S, PATIENCE_S, FakeWork, ask, occupied, queued, run
from tandem_workers.endpoint.batching import Batcher, BatchReport, padded


def test_a_full_batch_starts_at_once_and_an_incomplete_one_does_not():
    async def test() -> None:
        work = FakeWork()
        batcher = Batcher(work, most=4, wait_s=FOREVER_S)
        first = await queued(batcher, "a", "b", "c")
        await asyncio.sleep(0.05)
        assert work.batches == []
        assert await ask(batcher, "d") == ["made d"]
        assert await first == ["made a", "made b", "made c"]
        assert work.batches == [["a", "b", "c", "d"]]

    run(test)


def test_an_incomplete_batch_starts_when_its_oldest_row_has_waited_long_enough():
    async def test() -> None:
        reports: list[BatchReport] = []
        batcher = Batcher(FakeWork(), 4, 0.1, reports.append)
        began = time.monotonic()
        assert await ask(batcher, "a") == ["made a"]
        assert time.monotonic() - began >= 0.1
        assert 0.1 <= reports[0].wait_s < 5
        assert (reports[0].rows, reports[0].size, reports[0].error) == (1, 1, None)

    run(test)


def test_rows_that_keep_coming_do_not_put_the_oldest_off():
    async def test() -> None:
        batcher = Batcher(FakeWork(), most=100_000, wait_s=0.1)
        oldest = await queued(batcher, "oldest")
        others = []
        while not oldest.done():  # for ever, if each row began the wait anew
            others.append(asyncio.create_task(ask(batcher, f"row {len(others)}")))
            await asyncio.sleep(0.01)
        assert len(others) > 1
        await asyncio.gather(*others)

    run(test)


def test_batches_are_cut_only_when_the_model_is_free():
    """Waiting for company is over for each of them long before; cut at arrival, they would be three batches."""

    async def test() -> None:
        work = FakeWork(held=True)
        batcher = await occupied(work, most=4)
        tasks = [await queued(batcher, name) for name in "abc"]
        assert len(work.batches) == 1
        work.gate.set()
        await asyncio.gather(*tasks)
        assert work.batches[1:] == [["a", "b", "c"]]

    run(test)


def test_keys_are_never_mixed_and_the_oldest_row_decides():
    async def test() -> None:
        work = FakeWork(held=True)
        batcher = await occupied(work, most=4)
        tasks = [await queued(batcher, name, key=name[0]) for name in ("a1", "b1", "a2", "b2", "c1", "a3")]
        work.gate.set()
        await asyncio.gather(*tasks)
        assert work.batches[1:] == [["a1", "a2", "a3"], ["b1", "b2"], ["c1"]]

    run(test)


def test_a_single_row_is_not_starved_by_full_batches_of_another_key():
    async def test() -> None:
        work = FakeWork(held=True)
        batcher = await occupied(work, most=4)
        tasks = [await queued(batcher, "lonely", key="rare")]
        tasks += [await queued(batcher, *(f"{name}{i}" for i in range(4)), key="common") for name in "abc"]
        work.gate.set()
        await asyncio.gather(*tasks)
        assert work.batches[1] == ["lonely"]

    run(test)


def test_a_full_batch_does_not_wait_for_an_older_row_of_another_key():
    async def test() -> None:
        work = FakeWork()
        batcher = Batcher(work, 4, wait_s=FOREVER_S)
        lonely = await queued(batcher, "lonely", key="rare")
        await asyncio.gather(*[ask(batcher, "a", "b", key="common"), ask(batcher, "c", "d", key="common")])
        assert work.batches == [["a", "b", "c", "d"]]
        lonely.cancel()

    run(test)


@pytest.mark.parametrize(("elsewhere", "times"), [(0, 1), (2, 3.5), (4, 6), (40, 6)])
def test_patience_grows_with_what_is_done_elsewhere_up_to_six_times(elsewhere, times):
    async def test() -> None:
        assert Batcher(FakeWork(), 4, 0.005, elsewhere=lambda: elsewhere).stretch() == times

    run(test)


def test_rows_of_one_request_may_go_in_several_batches_and_come_back_in_their_positions():
    async def test() -> None:
        work = FakeWork(held=True)
        batcher = await occupied(work, most=4)
        names = [[f"{name}{i}" for i in range(count)] for name, count in (("a", 3), ("b", 6), ("c", 1))]
        tasks = [await queued(batcher, *rows) for rows in names]
        work.gate.set()
        assert await asyncio.gather(*tasks) == [[f"made {row}" for row in rows] for rows in names]
        assert work.batches[1:] == [["a0", "a1", "a2", "b0"], ["b1", "b2", "b3", "b4"], ["b5", "c0"]]

    run(test)


def test_a_request_that_is_alone_shares_with_nobody_and_always_has_the_whole_size():
    async def test() -> None:
        work = FakeWork(held=True)
        batcher = await occupied(work, most=4, wait_s=FOREVER_S)
        tasks = [
            await queued(batcher, "a0", "a1"),
            await queued(batcher, "x0", alone=True),
            await queued(batcher, *(f"y{i}" for i in range(5)), alone=True),
            await queued(batcher, "b0", "b1"),
        ]
        work.gate.set()
        await asyncio.gather(*tasks)
        assert work.batches[1:] == [["a0", "a1", "b0", "b1"], ["x0"], ["y0", "y1", "y2", "y3"], ["y4"]]
        assert work.sizes == [4] * 5

    run(test)


@pytest.mark.parametrize(("most", "sizes"), [(8, [1, 2, 4, 4, 8, 8, 8, 8]), (6, [1, 2, 4, 4, 6, 6])])
def test_sizes_are_padded_to_the_next_power_of_two_and_never_beyond_the_most(most, sizes):
    async def test() -> None:
        work = FakeWork()
        batcher = Batcher(work, most, wait_s=0.0)
        for rows in range(1, most + 1):
            await ask(batcher, *(str(i) for i in range(rows)))
        assert work.sizes == sizes == [padded(rows, most) for rows in range(1, most + 1)]

    run(test)


def test_several_values_of_a_row_come_in_order_and_before_the_batch_is_done():
    async def test() -> None:
        gate = threading.Event()

        def work(rows: Sequence[str], size: int) -> Iterator[tuple[int, int]]:
            for value in range(3):
                for place in reversed(range(len(rows))):
                    yield place, value
            assert gate.wait(PATIENCE_S)
            for place in range(len(rows)):
                yield place, 3

        found: dict[int, list[int]] = {0: [], 1: []}
        batcher: Batcher[str, int] = Batcher(work, most=2, wait_s=0.0)
        async for position, value in batcher.run(["a", "b"], "k"):
            found[position].append(value)
            if found == {0: [0, 1, 2], 1: [0, 1, 2]}:
                gate.set()  # only now: the values above did not wait for the end
        assert found == {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}

    run(test)


REQUESTS = st.lists(st.tuples(st.integers(1, 7), st.sampled_from("ab"), st.booleans()), min_size=1, max_size=8)


@examples(max_examples=60, deadline=None)
@given(requests=REQUESTS, most=st.integers(1, 5), wait_s=st.sampled_from([0.0, 0.002]))
def test_any_mix_of_requests_gets_every_row_exactly_once(requests, most, wait_s):
    async def test() -> None:
        work = FakeWork()
        batcher = Batcher(work, most, wait_s)
        asked = [
            ([f"{number}/{i}/{key}/{alone}" for i in range(count)], key, alone)
            for number, (count, key, alone) in enumerate(requests)
        ]
        answers = await asyncio.gather(*(ask(batcher, *rows, key=key, alone=alone) for rows, key, alone in asked))
        assert answers == [[f"made {row}" for row in rows] for rows, _, _ in asked]
        assert sorted(chain(*work.batches)) == sorted(row for rows, _, _ in asked for row in rows)
        assert batcher.waiting == 0
        for batch, size in zip(work.batches, work.sizes, strict=True):
            numbers, _, keys, alone = map(set, zip(*(row.split("/") for row in batch), strict=True))
            assert len(keys) == len(alone) == 1 and len(batch) <= size <= most
            if alone == {"True"}:
                assert len(numbers) == 1 and size == most

    run(test)


def test_batchers_of_one_device_take_turns_and_cut_a_batch_when_their_turn_comes():
    """Rows that arrive while the other model works still go together."""

    async def test():
        turn = asyncio.Lock()
        busy, free = FakeWork(held=True), FakeWork()
        first, second = (Batcher(work, most=4, wait_s=0.0, turn=turn) for work in (busy, free))
        tasks = [await queued(first, "a")]
        await busy.has_begun()
        for row in "bcd":
            tasks.append(await queued(second, row))
            await asyncio.sleep(0.005)  # the patience of each is over
        assert free.batches == []
        busy.gate.set()
        await asyncio.gather(*tasks)
        assert free.batches == [["b", "c", "d"]]

    run(test)
