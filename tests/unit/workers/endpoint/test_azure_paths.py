"""Azure OpenAI's paths and header: the same answers, checks and limits as below /v1, and no way around a key."""

from __future__ import annotations

import pytest

from support.fake_engine import MODEL, PATH, FakeEngine, client, make_gateway
from tandem_workers.endpoint.gateway import Watcher
from tandem_workers.endpoint.keys import digest
from tandem_workers.endpoint.middleware import BodyLimit

KEY = "a-key-of-some-length"
VERSION = "?api-version=2024-02-01"
IMAGES = (f"/openai/deployments/{MODEL}/images/generations{VERSION}", "/openai/v1/images/generations")
OTHERS = ("/openai/v1/models", f"/openai/v1/models/{MODEL}")
BODY = {"prompt": "dog", "seed": 5}


@pytest.mark.parametrize("path", [PATH, *IMAGES])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"api-key": KEY}, 200),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": "Bearer unknown", "api-key": KEY}, 200),
        ({"api-key": f"Bearer {KEY}"}, 401),
        ({"api-key": f"{KEY}x"}, 401),
        ({"api-key": ""}, 401),
        ({"api-key": digest(KEY)}, 401),
        ({"x-api-key": KEY}, 401),
        ({}, 401),
    ],
)
def test_a_key_is_needed_in_one_of_two_headers(path, headers, status):
    engine = FakeEngine()
    answer = client(make_gateway(engine, key_digests=(digest(KEY),))).post(path, json=BODY, headers=headers)
    assert answer.status_code == status, answer.text
    assert len(engine.asked) == (status == 200) and KEY not in answer.text


def test_every_path_below_openai_needs_one():
    api = client(make_gateway(FakeEngine(), key_digests=(digest(KEY),)))
    for path in (*OTHERS, "/openai", "/openai/", "/openai/files", "/openai/deployments/a/b"):
        assert api.get(path).status_code == 401, path
        assert api.get(path, headers={"api-key": KEY}).status_code == (200 if path in OTHERS else 404), path


@pytest.mark.parametrize("path", IMAGES)
def test_the_answer_and_the_errors_are_those_of_the_openai_api(path):
    api = client(make_gateway(FakeEngine()))
    answer, usual = (api.post(place, json=BODY).json() for place in (path, PATH))
    assert answer["data"] == usual["data"]
    error = api.post(path, json={"prompt": "unicorn", "sede": 1}).json()["error"]
    assert error == api.post(PATH, json={"prompt": "unicorn", "sede": 1}).json()["error"]
    assert "image_generation.completed" in api.post(path, json={**BODY, "stream": True}).text


@pytest.mark.parametrize("path", IMAGES)
def test_limits_names_and_metrics_count_as_ever(path):
    counted: list[tuple[str, int]] = []
    watcher = Watcher(answered=lambda *seen: counted.append(seen))
    gateway = make_gateway(FakeEngine(), watcher, max_images=2, body=BodyLimit(100), allowed_hosts=("testserver",))
    api = client(gateway)
    with gateway.admission.admit(2):
        assert api.post(path, json=BODY).status_code == 429
    assert api.post(path, json={**BODY, "user": "x" * 100}).status_code == 413
    assert api.post(path, json=BODY, headers={"host": "evil.example"}).status_code == 400
    assert api.get(path).status_code == 405
    assert api.post(path, json=BODY).status_code == 200
    assert [status for _, status in counted] == [429, 413, 400, 405, 200]
    assert counted[0][0].endswith("/images/generations")


@pytest.mark.parametrize("lenient", [False, True])
def test_another_deployment_is_not_there_unless_the_server_is_lenient(lenient):
    answer = client(make_gateway(FakeEngine(), lenient=lenient)).post(
        f"/openai/deployments/dall-e-3/images/generations{VERSION}", json=BODY
    )
    if lenient:
        assert [note["param"] for note in answer.json()["tandem"]["lenient"]] == ["model"]
    else:
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
