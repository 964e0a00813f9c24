"""The endpoint's answers: images, models, classes, health, and what an error becomes."""

from __future__ import annotations

import base64
import re
import time
from typing import Any

import pytest

from support.fake_engine import CLASS_NAMES, MODEL, NUM_TOKENS, PATH, SIZE, FakeEngine, K, client, make_gateway
from tandem.errors import InputError, JobError, OutputError
from tandem_workers.endpoint.gateway import Watcher
from tandem_workers.requests.api_errors import ApiError


def ask(gateway, **body: Any) -> Any:
    return client(gateway).post(PATH, json={"prompt": "ant", **body})


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]


def retry_after(answer: Any) -> int:
    """Whole seconds, as the header has to be."""
    assert re.fullmatch(r"[1-9]\d*", answer.headers["retry-after"])
    return int(answer.headers["retry-after"])


def test_images_come_as_the_openai_api_sends_them_and_say_how_they_were_made():
    began = int(time.time())
    answer = ask(make_gateway(FakeEngine()), prompt="dog", n=2, seed=5, output_format="jpeg", cfg=1).json()
    assert began <= answer.pop("created") <= time.time()
    settings = answer.pop("tandem")
    seconds = settings.pop("seconds")
    assert answer == {
        "data": [{"b64_json": base64.b64encode(f"4/5/{i}".encode()).decode()} for i in range(2)],
        "output_format": "jpeg",
        "size": SIZE,
        "background": "opaque",
        "usage": {
            "input_tokens": 1,
            "output_tokens": 2 * NUM_TOKENS,
            "total_tokens": 2 * NUM_TOKENS + 1,
            "input_tokens_details": {"text_tokens": 1, "image_tokens": 0},
        },
    }
    sampling = {"cfg": 1.0, "cfg_schedule": "linear", "top_k": 0, "top_p": 0.9, "temperatures": [1.0]}
    about = {"model": MODEL, "label": 4, "class_name": "dog", "seed": 5, "draft_steps": 3, "deterministic": False}
    assert settings == about | sampling
    assert seconds["draft"] == 0.25 and seconds["refine"] == 0.5
    assert set(seconds) == {"wait", "draft", "refine", "total"} and seconds["wait"] >= 0


def test_the_model_is_listed_and_shown_with_its_limits():
    api = client(make_gateway(FakeEngine(), max_n=7, batch=16))
    listed = api.get("/v1/models").json()
    assert (listed["object"], len(listed["data"])) == ("list", 1)
    model = listed["data"][0]
    assert model == api.get(f"/v1/models/{MODEL}").json()
    assert (model["id"], model["object"], model["created"], model["owned_by"]) == (MODEL, "model", 1764000000, "tandem")
    assert (model["max_n"], model["batch"], model["num_scales"], model["num_classes"]) == (7, 16, K, len(CLASS_NAMES))
    guidance = {"cfg": 3.0, "cfg_schedule": "linear", "refiner_cfg": None}
    assert model["defaults"] == {"draft_steps": 3, **guidance, "top_k": 0, "top_p": 0.9, "temperatures": [1.0]}
    assert (model["stores_urls"], model["output_formats"]) == (False, ["png", "jpeg", "webp"])
    assert error_of(api.get("/v1/models/gpt-image-1"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("query", "labels", "total"),
    [
        ("", [0, 1, 2, 3, 4], 5),
        ("?limit=2", [0, 1], 5),
        ("?query=TOM", [3, 2], 2),
        ("?query=tom&limit=1", [3], 2),
        ("?query=4", [4], 1),
        ("?query=%20bee,%20%20honey", [1], 1),
        ("?query=zebra", [], 0),
    ],
)
def test_classes_are_found_by_part_of_a_name_or_by_number(query, labels, total):
    found = client(make_gateway(FakeEngine())).get(f"/v1/classes{query}").json()
    synonyms = {1: ["bee", "honeybee"], 2: ["Cat", "tom"]}
    data = [{"id": i, "object": "class", "name": CLASS_NAMES[i], "synonyms": synonyms.get(i, [])} for i in labels]
    assert found == {"object": "list", "data": data, "total": total}


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=" + "9" * 5000, "query=" + "a" * 201])
def test_a_wrong_query_is_refused_with_its_name(query):
    assert error_of(client(make_gateway(FakeEngine())).get(f"/v1/classes?{query}"), 400)["param"] == query[:5]


def test_images_are_published_where_there_is_a_store():
    put = []
    gateway = make_gateway(FakeEngine(), publish=lambda *file: put.append(file) or f"https://store/{len(put)}")
    answer = ask(gateway, n=2, seed=5, response_format="url", output_format="jpeg").json()
    assert answer["data"] == [{"url": "https://store/1"}, {"url": "https://store/2"}]
    assert put == [("jpg", b"0/5/0"), ("jpg", b"0/5/1")]
    assert client(gateway).get("/v1/models").json()["data"][0]["stores_urls"] is True
    assert "url" not in ask(gateway).json()["data"][0]


def test_a_store_that_fails_is_the_servers_fault_and_not_the_clients():
    def fail(name: str, data: bytes) -> str:
        raise OutputError("cannot write bucket secret-bucket, key served/ab")

    answer = ask(make_gateway(FakeEngine(), publish=fail), response_format="url")
    assert answer.status_code in (500, 503), answer.text
    assert "secret-bucket" not in answer.text


@pytest.mark.parametrize(
    ("fault", "status", "code", "message"),
    [
        (JobError("logits of scales 1 to 3 are not finite"), 500, "decoding_failed", "logits of scales 1 to 3"),
        (RuntimeError("secret of the server"), 500, "server_error", "its log says why"),
        (InputError("seed: expected another"), 400, "invalid_value", "seed: expected another"),
        (ApiError(503, "the replicas were lost", code="replicas_lost", retry_after_s=5), 503, "replicas_lost", "lost"),
    ],
)
def test_an_error_of_the_engine_has_its_status_gives_its_place_back_and_is_counted(fault, status, code, message):
    counted = []
    gateway = make_gateway(FakeEngine(fault), Watcher(answered=lambda *seen: counted.append(seen)))
    answer = ask(gateway)
    error = error_of(answer, status)
    assert error["code"] == code and message in error["message"]
    assert "secret" not in answer.text
    assert ("retry-after" in answer.headers) == (status == 503)
    assert gateway.admission.in_flight == 0
    assert counted == [(PATH, status)]


def test_an_engine_that_takes_too_long_is_a_503_that_says_when_to_ask_again():
    engine = FakeEngine(hang=True)
    gateway = make_gateway(engine, timeout_s=0.05)
    answer = ask(gateway)
    error = error_of(answer, 503)
    assert (error["code"], error["type"]) == ("timeout", "server_error")
    assert retry_after(answer) <= 60
    assert (engine.closed, gateway.admission.in_flight) == (1, 0)


def test_a_full_queue_is_a_429_that_says_when_to_ask_again():
    gateway = make_gateway(FakeEngine(), max_images=10)
    with gateway.admission.admit(8):
        answer = ask(gateway, n=3)
        assert ask(gateway, n=2).status_code == 200
    assert error_of(answer, 429)["type"] == "rate_limit_error"
    assert retry_after(answer) <= 60
    assert ask(gateway, n=3).status_code == 200


def test_a_server_that_drains_is_alive_and_not_ready_and_takes_no_images():
    gateway = make_gateway(FakeEngine())
    api = client(gateway)
    assert (api.get("/healthz").json(), api.get("/readyz").json()) == ({"status": "ok"}, {"status": "ok"})
    gateway.admission.draining = True
    for answer in (ask(gateway), ask(gateway, stream=True), api.get("/readyz")):
        error_of(answer, 503)
        assert retry_after(answer) <= 60
    assert api.get("/healthz").status_code == 200


def test_a_server_that_has_just_made_images_is_ready_however_long_its_queue(monkeypatch):
    engine = FakeEngine()
    gateway = make_gateway(engine)
    assert ask(gateway).status_code == 200
    engine.is_ready = False
    assert client(gateway).get("/readyz").status_code == 200
    monkeypatch.setattr("tandem_workers.endpoint.gateway.READY_FOR_S", 0.0)
    error_of(client(gateway).get("/readyz"), 503)


def test_a_server_that_misses_replicas_says_which_even_if_it_has_just_made_images():
    engine = FakeEngine()
    gateway = make_gateway(engine)
    assert ask(gateway).status_code == 200
    engine.lost = "no refiner answers"
    assert error_of(client(gateway).get("/readyz"), 503)["message"] == "no refiner answers"
    gateway.admission.draining = True
    assert error_of(client(gateway).get("/readyz"), 503)["message"] == "the server is shutting down"


@pytest.mark.parametrize("engine", [FakeEngine(is_ready=False), FakeEngine(hang=True)])
def test_a_server_whose_models_do_not_answer_is_alive_and_not_ready(engine, monkeypatch):
    monkeypatch.setattr("tandem_workers.endpoint.gateway.READY_TIMEOUT_S", 0.05)
    api = client(make_gateway(engine))
    error_of(api.get("/readyz"), 503)
    assert api.get("/healthz").status_code == 200
