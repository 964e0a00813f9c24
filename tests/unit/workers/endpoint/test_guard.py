"""Protection of the models: limits of images and requests in flight."""

from __future__ import annotations

import pytest

from tandem_workers.endpoint.guard import FIRST_GUESS_S, LONGEST_S, Admission
from tandem_workers.requests.api_errors import ApiError


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tandem_workers.endpoint.guard.time", clock)
    return clock


def refusal(admission: Admission, images: int) -> ApiError:
    with pytest.raises(ApiError) as caught, admission.admit(images):
        raise AssertionError("it was let in")
    return caught.value


def make(admission: Admission, clock: Clock, images: int, seconds: float) -> None:
    with admission.admit(images):
        clock.now += seconds


def test_images_are_let_in_up_to_the_limit_and_counted_until_they_are_done():
    told: list[int] = []
    admission = Admission(10, 8, told.append)
    with admission.admit(5):
        with admission.admit(3):
            error = refusal(admission, 1)
        with admission.admit(3):
            pass
    assert (error.status, error.code, error.retry_after_s) == (429, "queue_full", FIRST_GUESS_S)
    assert "8" in str(error) and "1 more" in str(error)
    assert told == [5, 8, 5, 8, 5, 0]
    assert admission.in_flight == 0


def test_requests_are_limited_as_well_as_their_images():
    admission = Admission(2, 100)
    with admission.admit(1), admission.admit(1):
        assert refusal(admission, 1).status == 429
    with admission.admit(1):
        assert admission.in_flight == 1


def test_a_request_that_fails_gives_its_place_back():
    admission = Admission(1, 8)
    with pytest.raises(ValueError, match="it broke"), admission.admit(8):
        raise ValueError("it broke")
    with admission.admit(8):
        assert admission.in_flight == 8


def test_a_server_that_drains_takes_nothing_new_and_keeps_what_it_has():
    admission = Admission(10, 8)
    with admission.admit(2):
        admission.draining = True
        error = refusal(admission, 1)
        assert admission.in_flight == 2
    assert (error.status, error.code) == (503, "draining")
    assert error.retry_after_s > 0


def test_the_time_to_wait_follows_the_speed_and_shrinks_as_more_is_done(clock):
    """Eight images: 16 s at one in two seconds, then less and less as forty come in four seconds."""
    admission = Admission(10, 8)
    for _ in range(8):
        make(admission, clock, 1, 2.0)
    with admission.admit(8):
        slow = refusal(admission, 8).retry_after_s
    assert 8 <= slow <= 32
    waits = [slow]
    for _ in range(5):
        make(admission, clock, 8, 0.8)
        with admission.admit(8):
            waits.append(refusal(admission, 8).retry_after_s)
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] < slow / 3


def test_the_time_to_wait_has_an_end(clock):
    admission = Admission(10, 8)
    make(admission, clock, 1, 0.0)
    clock.now += 29
    with admission.admit(8):
        assert refusal(admission, 8).retry_after_s == LONGEST_S


def test_what_was_done_long_ago_is_forgotten_even_if_nobody_is_ever_refused(clock):
    """A server runs for months: its memory of past requests may not grow with them."""
    admission = Admission(10, 8)
    for _ in range(1000):
        make(admission, clock, 1, 1.0)
    assert len(admission.done) < 100
    clock.now += 1000
    with admission.admit(8):
        assert refusal(admission, 1).retry_after_s == FIRST_GUESS_S
