"""Protection of the models: limits of images and bodies, API keys, and the count of responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tandem_workers.endpoint.api_errors import ApiError
from tandem_workers.endpoint.guard import (
    FIRST_GUESS_S,
    LONGEST_S,
    Admission,
    CountRequests,
    LimitBody,
    digest,
    is_known,
)

LIMIT = 100


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


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("Bearer first-key", True),
        ("bearer second-key", True),
        ("BEARER  second-key ", True),
        ("Bearer third-key", False),
        ("Bearer first-key second-key", False),
        ("Bearer first-ke", False),
        ("Bearer ", False),
        ("Bearer", False),
        ("Basic first-key", False),
        ("first-key", False),
        (f"Bearer {digest('first-key')}", False),
        ("Bearer f\u00efrst-key", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_bearer_of_one_of_the_keys_is_known(header, known):
    assert is_known(header, (digest("first-key"), digest("second-key"))) is known


def test_a_digest_does_not_hold_the_key():
    assert "secret" not in digest("secret")
    assert digest("secret") != digest("Secret")


HTTP = {"type": "http", "method": "POST", "path": "/", "headers": []}


class FakeApp:
    """Reads its body and answers; remembers what it read and how reading went on."""

    def __init__(self, status: int = 200, fault: BaseException | None = None, route: str | None = None) -> None:
        self.status, self.fault, self.route = status, fault, route
        self.bodies: list[bytes] = []
        self.after: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.route:
            scope["route"] = SimpleNamespace(path=self.route)
        if self.fault:
            raise self.fault
        message = await receive()
        self.bodies.append(message.get("body", b""))
        if scope["type"] == "http":
            self.after.append((await receive())["type"])
            await send({"type": "http.response.start", "status": self.status, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})


def drive(app: Any, messages: Iterator[dict], scope: dict | None = None) -> list[dict]:
    """What the app sends when it receives the messages."""
    sent: list[dict] = []

    async def receive() -> dict:
        return next(messages)

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(dict(scope or HTTP), receive, send))
    return sent


def chunks(*parts: bytes) -> Iterator[dict]:
    for number, part in enumerate(parts, 1):
        yield {"type": "http.request", "body": part, "more_body": number < len(parts)}
    yield {"type": "http.disconnect"}


@pytest.mark.parametrize("parts", [(b"",), (b"x" * LIMIT,), (b"x" * 60, b"y" * 40), (b"x",) * LIMIT])
def test_a_body_up_to_the_limit_comes_through_whole_and_the_connection_behind_it(parts):
    app = FakeApp()
    sent = drive(LimitBody(app, LIMIT), chunks(*parts))
    assert sent[0]["status"] == 200
    assert app.bodies == [b"".join(parts)]
    assert app.after == ["http.disconnect"]


@pytest.mark.parametrize("parts", [(b"x" * (LIMIT + 1),), (b"x" * 60, b"y" * 41), (b"x" * 30,) * 1000])
@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_a_longer_body_is_refused_and_not_read_to_its_end(parts, declared):
    headers = [(b"content-length", str(len(b"".join(parts))).encode())] if declared else []
    app, messages = FakeApp(), chunks(*parts)
    sent = drive(LimitBody(app, LIMIT), messages, HTTP | {"headers": headers})
    assert sent[0]["status"] == 413
    error = json.loads(sent[1]["body"])["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "body_too_large")
    assert f"at most {LIMIT} bytes" in error["message"]
    assert app.bodies == []
    assert len(list(messages)) >= len(parts) - 4


def test_a_client_that_goes_away_in_its_body_is_not_answered():
    app = FakeApp()
    half = iter([{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}])
    assert drive(LimitBody(app, LIMIT), half) == []
    assert app.bodies == []


def test_other_traffic_than_http_passes():
    app, counted = FakeApp(), []
    lifespan = iter([{"type": "lifespan.startup", "body": b"x" * 1000}])
    drive(CountRequests(LimitBody(app, LIMIT), lambda *seen: counted.append(seen)), lifespan, {"type": "lifespan"})
    assert app.bodies == [b"x" * 1000]
    assert counted == []


@pytest.mark.parametrize("status", [200, 404, 503])
def test_answers_are_counted_by_route_and_status(status):
    counted = []
    app = CountRequests(FakeApp(status, route="/v1/models/{model_id}"), lambda *seen: counted.append(seen))
    sent = drive(app, chunks(b""))
    assert sent[0]["status"] == status
    assert counted == [("/v1/models/{model_id}", status)]


def test_paths_that_are_none_of_ours_are_counted_as_one():
    """Each path of its own would let a scanner fill the memory of the metrics."""
    counted = []
    for path in ("/admin.php", "/.env"):
        drive(CountRequests(FakeApp(404), lambda *seen: counted.append(seen)), chunks(b""), HTTP | {"path": path})
    assert counted == [("other", 404)] * 2


@pytest.mark.parametrize(
    ("fault", "status"), [(asyncio.CancelledError(), 499), (RuntimeError("a fault of the server"), 500)]
)
def test_a_client_that_left_and_a_fault_of_the_server_are_told_apart(fault, status):
    counted = []
    app = CountRequests(FakeApp(fault=fault, route="/"), lambda *seen: counted.append(seen))
    with pytest.raises(type(fault)):
        drive(app, chunks(b""))
    assert counted == [("/", status)]
