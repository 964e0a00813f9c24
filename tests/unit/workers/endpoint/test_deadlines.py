"""Deadlines from measured times: bounded, and patient with what has not been measured."""

from __future__ import annotations

import pytest

from tandem_workers.endpoint import deadlines
from tandem_workers.endpoint.deadlines import MAX_SHAPES, RECENT, BatchClock, Deadline


@pytest.mark.parametrize(
    ("measured", "seconds"),
    [
        ([], 120.0),
        ([0.1], 120.0),  # the first time includes set-up
        ([0.1, 0.1], 10.0),
        ([3.0, 1.0], 30.0),
        ([20.0, 1.0], 120.0),
        ([90.0, 80.0], 180.0),  # a slow machine: the upper bound would be too short
        ([50.0] + [0.1] * RECENT, 10.0),
    ],
)
def test_a_deadline_is_a_multiple_of_the_longest_recent_time_within_bounds(measured, seconds):
    deadline = Deadline(10.0, 10.0, 120.0)
    deadline.recent.extend(measured)
    assert deadline.seconds == seconds


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """Seconds on the clock."""
    times = [0.0]
    monkeypatch.setattr(deadlines.time, "monotonic", lambda: times[0])
    return times


def take(clock: BatchClock, now: list[float], seconds: float, shape: object = 8) -> str:
    """What is overdue at the end of a batch."""
    with clock.batch(shape, 3):
        now[0] += seconds
        return clock.overdue()


def test_a_batch_is_overdue_after_ten_times_the_longest_of_its_shape(now):
    clock = BatchClock(10.0, 120.0)
    assert [take(clock, now, seconds) for seconds in (100.0, 2.0)] == ["", ""]
    clock.deadlines[8].recent.popleft()
    assert [take(clock, now, seconds) for seconds in (2.0, 19.0)] == ["", ""]
    clock.deadlines[8].recent.pop()
    assert take(clock, now, 21.0) == "a batch of 3 images has been in work for more than 20 s"
    assert clock.overdue() == ""  # it is finished


def test_a_new_shape_may_compile_and_capture_however_quick_the_others_are(now):
    clock = BatchClock(10.0, 120.0)
    for _ in range(5):
        take(clock, now, 0.1)
    assert take(clock, now, 60.0, shape=4) == take(clock, now, 60.0, shape=4) == ""
    assert take(clock, now, 121.0, shape=2) == "a batch of 3 images has been in work for more than 120 s"


def test_a_batch_that_fails_is_not_measured(now):
    clock = BatchClock(10.0, 120.0)
    with pytest.raises(ValueError, match="bad"), clock.batch(8, 1):
        raise ValueError("bad")
    assert not clock.deadlines[8].recent and clock.running is None


def test_shapes_without_number_do_not_fill_the_memory(now):
    clock = BatchClock(10.0, 120.0)
    for shape in range(2 * MAX_SHAPES):
        take(clock, now, 0.1, shape)
    assert len(clock.deadlines) == MAX_SHAPES
