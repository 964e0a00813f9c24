"""Images as server-sent events: previews, then the images, and what happens when something or somebody goes away."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from support.fake_engine import MODEL, NUM_TOKENS, PATH, SIZE, FakeEngine, K, client, events_of, make_gateway
from tandem.errors import JobError
from tandem_workers.endpoint.api import create_api
from tandem_workers.endpoint.gateway import Gateway, Watcher

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"
PATIENCE_S = 10.0


def stream(gateway: Gateway, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = client(gateway).post(PATH, json={"prompt": "dog", "seed": 5, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    return events_of(answer.text)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_previews_come_before_the_images_each_as_the_openai_api_sends_it():
    first, second, last = stream(make_gateway(FakeEngine()), partial_images=2, output_format="webp")
    for (name, event), scale, by, index in ((first, 1, "drafter", 0), (second, 3, "drafter", 1)):
        assert name == PARTIAL
        assert event.pop("created_at") > 0
        assert event == {
            "type": PARTIAL,
            "b64_json": encoded(f"preview 0/{scale}"),
            "partial_image_index": index,
            "size": SIZE,
            "quality": "auto",
            "background": "opaque",
            "output_format": "webp",
            "image_index": 0,
            "scale": scale,
            "num_scales": K,
            "made_by": by,
        }
    name, event = last
    assert (name, event["type"], event["b64_json"]) == (COMPLETED, COMPLETED, encoded("4/5/0"))
    assert event["usage"]["output_tokens"] == NUM_TOKENS
    assert (event["size"], event["output_format"], event["image_index"]) == (SIZE, "webp", 0)
    assert (event["tandem"]["model"], event["tandem"]["seed"], event["tandem"]["class_name"]) == (MODEL, 5, "dog")
    assert "url" not in event


def test_each_of_several_images_has_its_previews_and_its_completion():
    events = stream(make_gateway(FakeEngine()), n=3, preview_scales=[1, 3], draft_steps=2)
    assert [name for name, _ in events] == [PARTIAL] * 6 + [COMPLETED] * 3
    previews = [(event["image_index"], event["scale"], event["made_by"]) for _, event in events[:6]]
    assert previews == [(i, scale, by) for scale, by in ((1, "drafter"), (3, "refiner")) for i in range(3)]
    assert [event["partial_image_index"] for _, event in events[:6]] == list(range(6))
    done = [(event["image_index"], event["b64_json"]) for _, event in events[6:]]
    assert done == [(i, encoded(f"4/5/{i}")) for i in range(3)]
    assert sum(event["usage"]["output_tokens"] for _, event in events[6:]) == 3 * NUM_TOKENS


def test_without_previews_the_images_come_alone():
    assert [name for name, _ in stream(make_gateway(FakeEngine()), n=2, partial_images=0)] == [COMPLETED] * 2


def test_published_images_are_answered_by_their_address():
    gateway = make_gateway(FakeEngine(), publish=lambda name, data: f"https://store/{data.decode()}.{name}")
    _, event = stream(gateway, partial_images=0, response_format="url")[0]
    assert event["url"] == "https://store/4/5/0.png" and "b64_json" not in event


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (JobError("pixels are not finite"), "decoding_failed", "pixels are not finite"),
        (RuntimeError("secret of the server"), "server_error", "its log says why"),
    ],
)
def test_an_error_after_previews_is_the_last_event(fault, code, message):
    gateway = make_gateway(FakeEngine(fault))
    events = stream(gateway, partial_images=1)
    assert [name for name, _ in events] == [PARTIAL, "error"]
    error = events[-1][1]["error"]
    assert (error["type"], error["code"]) == ("server_error", code)
    assert message in error["message"] and "secret" not in json.dumps(events)
    assert gateway.admission.in_flight == 0


def test_a_stream_that_takes_too_long_ends_with_an_error():
    engine = FakeEngine(hang=True)
    gateway = make_gateway(engine, timeout_s=0.05)
    events = stream(gateway, partial_images=1)
    assert [name for name, _ in events] == [PARTIAL, "error"]
    assert events[-1][1]["error"]["code"] == "timeout"
    assert (engine.closed, gateway.admission.in_flight) == (1, 0)


def test_what_is_refused_before_a_stream_is_a_status_and_no_event():
    gateway = make_gateway(FakeEngine(), max_images=10)
    api = client(gateway)
    body = {"prompt": "dog", "stream": True}
    with gateway.admission.admit(9):
        full = api.post(PATH, json={**body, "n": 2})
    gateway.admission.draining = True
    draining = api.post(PATH, json=body)
    for answer, status in ((full, 429), (draining, 503), (api.post(PATH, json={**body, "cfg": -1}), 400)):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json()) == {"error"}
        assert ("retry-after" in answer.headers) == (status != 400)
    assert gateway.admission.in_flight == 0


def test_a_watcher_hears_of_the_first_preview_and_of_the_end():
    heard = []
    watcher = Watcher(
        answered=lambda path, status: heard.append((path, status)),
        took=lambda seconds: heard.append("took"),
        first_preview=lambda seconds: heard.append("first"),
        in_flight=heard.append,
    )
    stream(make_gateway(FakeEngine(), watcher), n=2, partial_images=2)
    assert heard == [2, "first", "took", 0, (PATH, 200)]


class Connection:
    """One request by hand, so that its client can go away: before the answer or in the middle of it."""

    def __init__(self, app: Any, body: dict[str, Any], spec_version: str) -> None:
        self.body, self.gone = json.dumps(body).encode(), asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b""}
        self.scope |= {"headers": [(b"content-type", b"application/json")], "asgi": {"spec_version": spec_version}}
        self.task = asyncio.create_task(app(self.scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if self.gone.is_set():
            raise OSError("the client has gone")
        self.sent.append(message)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


STREAM, NO_PREVIEWS = {"stream": True}, {"stream": True, "partial_images": 0}


@pytest.mark.parametrize(
    ("how", "body"),
    [
        ("disconnected", STREAM),
        ("disconnected", NO_PREVIEWS),
        ("cancelled", STREAM),
        ("cancelled", NO_PREVIEWS),
        ("cancelled", {}),  # an answer in one piece does not listen for disconnection: Ray Serve cancels it
    ],
)
def test_a_client_that_goes_away_stops_the_engine_and_gives_its_place_back(how, body):
    """A server either tells of the disconnection or cancels the request."""

    async def test() -> None:
        engine = FakeEngine(hang=True)
        gateway = make_gateway(engine)
        connection = Connection(create_api(gateway), {"prompt": "ant", "n": 3, **body}, "2.0")
        sent = 1 + 3 * (K - 1) if body == STREAM else len(body) // 2  # the head, and the previews of three images
        await until(lambda: len(connection.sent) == sent and bool(engine.asked))
        assert (engine.closed, gateway.admission.in_flight) == (0, 3)
        if how == "cancelled":
            connection.task.cancel()
        connection.gone.set()
        await asyncio.wait([connection.task])
        await until(lambda: engine.closed == 1)
        assert gateway.admission.in_flight == 0

    asyncio.run(asyncio.wait_for(test(), PATIENCE_S))


def test_a_client_that_goes_away_between_two_previews_stops_the_engine():
    """Found out when the next event is sent; the engine then stands at its own yield."""

    async def test() -> None:
        engine = FakeEngine()
        gateway = make_gateway(engine)
        connection = Connection(create_api(gateway), {"prompt": "ant", "stream": True}, "2.4")
        await until(lambda: len(connection.sent) == 2)
        connection.gone.set()
        await asyncio.wait([connection.task])
        await until(lambda: engine.closed == 1)
        assert gateway.admission.in_flight == 0
        assert len(connection.sent) == 2

    asyncio.run(asyncio.wait_for(test(), PATIENCE_S))
