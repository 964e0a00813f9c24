"""What a refused request is told, and what is taken that other servers would take."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from support.fake_engine import ABOUT, CLASS_NAMES, PATH, FakeEngine, client, make_gateway
from tandem.class_names import ClassNames
from tandem_workers.endpoint.gateway import Gateway, GatewaySettings

JSON = {"content-type": "application/json"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def api(engine) -> TestClient:
    return client(make_gateway(engine))


def refused(answer: Any, param: str | None) -> dict[str, Any]:
    """The error of an answer, in the form of the OpenAI API."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    return error


def test_all_reasons_come_in_one_answer_with_the_classes_where_they_are_few(api, engine):
    body = {"prompt": "a cat on a sofa", "model": "dall-e-3", "size": "1024x1024", "guidance_scale": 7.5, "steps": 20}
    error = refused(api.post(PATH, json=body), "size")
    for part in ("size: expected", "model: expected 'tandem-test'", "prompt: expected a class name", "classes are ant"):
        assert part in error["message"], part
    assert "guidance_scale: here it is `cfg`" in error["message"]
    assert "steps: there are no diffusion steps here; `draft_steps`" in error["message"]
    assert engine.asked == []


def test_reasons_of_values_that_the_schema_allows_come_together_too(api):
    error = refused(api.post(PATH, json={"prompt": "bird", "model": "x", "preview_scales": [1]}), "model")
    assert error["code"] == "model_not_found"
    assert "preview_scales: expected stream: true" in error["message"] and "'bird'" in error["message"]


def test_what_is_echoed_of_names_has_an_end(api):
    error = refused(api.post(PATH, json={"prompt": "ant", "x" * 60_000: 1}), f"{'x' * 80}…")
    assert len(error["message"]) < 300
    error = refused(api.post(PATH, json={"prompt": "ant", **{f"a{i}": i for i in range(5000)}}), "a0")
    assert len(error["message"]) < 300 and error["message"].endswith("and 4992 more")
    answer = api.get("/" + "x" * 6000)
    assert answer.status_code == 404 and len(answer.text) < 300


@pytest.mark.parametrize(
    ("content", "headers", "reason"),
    [
        (b'{"prompt": "ant", "seed": ' + b"9" * 5000 + b"}", {}, "integer of more than 4300 digits"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, {}, "nested too deeply"),
        (
            gzip.compress(b'{"prompt": "ant"}', mtime=0),
            {"content-encoding": "gzip"},
            "without Content-Encoding, got 'gzip'",
        ),
        (b'{"prompt": "\xff\xfe"}', {}, "JSON in UTF-8"),
    ],
    ids=["digits", "depth", "gzip", "encoding"],
)
def test_a_body_that_cannot_be_parsed_is_told_why(api, content, headers, reason):
    error = refused(api.post(PATH, content=content, headers=JSON | headers), None)
    assert error["code"] == "invalid_json" and reason in error["message"]


def test_a_whole_number_may_be_written_with_a_point(api, engine):
    """JSON has one type of number, and JSON Schema counts 1.0 as an integer."""
    body = {"n": 2.0, "seed": 7.0, "draft_steps": 1.0, "top_k": 3.0, "output_compression": 50.0, "label": 4.0}
    answer = api.post(PATH, json={"prompt": "ant", "stream": True, "preview_scales": [1.0, 2], **body})
    assert answer.status_code == 200, answer.text
    (request,) = engine.asked
    assert (request.n, request.seed, request.draft_steps, request.sampling.top_k) == (2, 7, 1, 3)
    assert (request.quality, request.label, request.preview_scales) == (50, 4, {1, 2})


def test_a_quality_of_0_is_the_lowest(api, engine):
    assert api.post(PATH, json={"prompt": "ant", "output_compression": 0}).status_code == 200
    assert engine.asked[0].quality == 1


def test_a_class_by_its_number_goes_before_the_prompt(api, engine):
    """A class that is called 3 hides number 3 from the prompt."""
    answer = api.post(PATH, json={"prompt": "whatever this is", "label": 3})
    assert engine.asked[0].label == 3
    assert answer.json()["tandem"]["class_name"] == CLASS_NAMES[3]


def test_a_name_of_any_length_can_be_asked_for():
    about = replace(ABOUT, class_names=ClassNames(("ant", "x" * 300)))
    engine = FakeEngine()
    api = client(Gateway(engine, about, GatewaySettings()))
    assert api.post(PATH, json={"prompt": "x" * 300}).status_code == 200
    assert engine.asked[0].label == 1
    assert api.post(PATH, json={"prompt": "x" * 301}).status_code == 400
