"""What the endpoint takes and refuses: a wrong value is a 400 that names the field, what was expected and what came."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from starlette.testclient import TestClient

from support.fake_engine import ABOUT, CLASS_NAMES, PATH, SAMPLING, FakeEngine, K, client, make_gateway
from tandem_workers.endpoint.middleware import BodyLimit
from tandem_workers.requests.api_schema import MAX_SEED, ImageBody
from tandem_workers.requests.messages import ImageRequest
from tandem_workers.requests.request_check import preview_scales

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def engine_and_api() -> tuple[FakeEngine, TestClient]:
    """One application for all that is asked here: building it takes longer than asking."""
    engine = FakeEngine()
    return engine, client(make_gateway(engine))


def refused(answer: Any, param: str | None, status: int = 400) -> dict[str, Any]:
    """The error of an answer, in the form of the OpenAI API."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert list(answer.json()) == ["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    return error


WRONG = [
    *(("n", value) for value in (0, -1, 11, 1.5, "3", True, [1])),
    *(("prompt", value) for value in (5, "", "x" * 201, ["ant"], None)),
    *(("size", value) for value in ("512x512", "16X16", 16)),
    *(("response_format", value) for value in ("png", "")),
    *(("output_format", value) for value in ("gif", "PNG", 1)),
    *(("output_compression", value) for value in (-1, 101, 50.5, "90")),
    *(("stream", value) for value in (1, "true", "yes")),
    *(("partial_images", value) for value in (-1, K, "2")),
    *(("label", value) for value in (-1, len(CLASS_NAMES), 1.5, "3")),
    *(("seed", value) for value in (-1, MAX_SEED + 1, 1.5, "7", True)),
    *(("draft_steps", value) for value in (-1, K + 1, 2.5, "2")),
    *(("cfg", value) for value in (-0.5, 20.5, "3", [3])),
    *(("cfg_schedule", value) for value in ("often", "off-after:5", "0,1,2", "0,1,2,21", "0,1,2,-3", 3)),
    *(("top_k", value) for value in (-1, ABOUT.vocab_size + 1, 2.5)),
    *(("top_p", value) for value in (-0.1, 1.1, "0.9")),
    *(("temperatures", value) for value in ([], [1.0] * (K + 1), 1.0, "1.0")),
    *(("deterministic", value) for value in (1, "true")),
    *(("preview_scales", value) for value in ([1, 2, 3, 3], 1, "1")),
    *(("model", value) for value in ("gpt-image-1", "", "x" * 201, 1)),
    *((name, "other") for name in ("quality", "style", "background", "moderation")),
    *((name, 5) for name in ("user", "safety_identifier")),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_named_with_what_was_expected_and_what_came(api, engine, name, value):
    error = refused(api.post(PATH, json={"prompt": "ant", "stream": True, name: value}), name)
    assert error["message"].startswith(f"{name}: ")
    assert "expected" in error["message"] or "should" in error["message"]
    assert repr(value)[:80] in error["message"] and len(error["message"]) < 300
    assert engine.asked == []


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("preview_scales", [1, 0], 1),
        ("preview_scales", [K], 0),
        ("preview_scales", [1.5], 0),
        ("temperatures", [1.0, 0.0], 1),
        ("temperatures", [10.5], 0),
        ("temperatures", [1, None], 1),
        ("temperatures", [1, 1e-40], 1),  # 0 in float32: logits divided by it are no numbers
    ],
)
def test_a_wrong_value_in_a_list_is_named_with_its_place(api, name, value, place):
    error = refused(api.post(PATH, json={"prompt": "ant", "stream": True, name: value}), f"{name}.{place}")
    assert f"got {value[place]!r}" in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        ({}, "prompt", "missing_required_parameter", "prompt: expected a value, got none"),
        ({"prompt": "ant", "sede": 3}, "sede", "unknown_parameter", "sede: unknown parameter; did you mean `seed`?"),
        ({"prompt": "ant", "n": 0, "cfg": -1}, "n", "invalid_value", "; cfg: "),
        ({"prompt": "ant", "model": "dall-e-3"}, "model", "model_not_found", "expected 'tandem-test', got 'dall-e-3'"),
        ({"prompt": "ant", "preview_scales": [1]}, "preview_scales", "invalid_value", "stream: true"),
        (
            {"prompt": "ant", "stream": True, "preview_scales": [1], "partial_images": 1},
            "preview_scales",
            "invalid_value",
            "partial_images",
        ),
    ],
)
def test_what_does_not_go_together_is_said(api, engine, body, param, code, message):
    error = refused(api.post(PATH, json=body), param)
    assert error["code"] == code
    assert message in error["message"]
    assert engine.asked == []


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("ant", 0),
        ("ANT", 0),
        ("  ant\n", 0),
        ("0", 0),
        ("4", 4),
        ("bee, honeybee", 1),
        ("Bee,   Honeybee", 1),
        ("honeybee", 1),
        ("bee", 1),
        ("cat", 2),
        ("cat, tom", 2),
        ("dog", 4),
    ],
)
def test_a_class_is_known_by_name_number_and_synonym_in_any_case(api, engine, prompt, label):
    answer = api.post(PATH, json={"prompt": prompt})
    assert engine.asked[0].label == label
    assert answer.json()["tandem"]["class_name"] == CLASS_NAMES[label]


def test_a_classs_whole_name_goes_before_a_synonym_of_another(api, engine):
    """As with 'cardigan' in ImageNet: a dog's synonym, and the name of a garment further down."""
    for label, name in enumerate(CLASS_NAMES):
        api.post(PATH, json={"prompt": name})
        assert engine.asked[-1].label == label, name


@pytest.mark.parametrize(
    "prompt", ["5", "-1", "1.0", "\u00b2", "\u0663", "bugs", "ant,", ",", " ", "a" * 200, "9" * 200]
)
def test_a_class_that_is_not_there_is_refused(api, engine, prompt):
    error = refused(api.post(PATH, json={"prompt": prompt}), "prompt")
    assert error["code"] == "class_not_found"
    assert "a number from 0 to 4" in error["message"]
    assert engine.asked == []


def test_a_long_number_is_not_cut_short(api, engine):
    """Of 0000000000004 the first twelve digits are class 0."""
    answer = api.post(PATH, json={"prompt": "0" * 12 + "4"})
    assert answer.status_code == 400 or engine.asked[0].label == 4


@pytest.mark.parametrize(("prompt", "near"), [("honeybe", "honeybee"), ("DOGG", "dog"), ("catt", "Cat")])
def test_an_unknown_class_comes_with_the_nearest_names(api, prompt, near):
    assert f"did you mean {near}" in refused(api.post(PATH, json={"prompt": prompt}), "prompt")["message"]


NULLABLE = sorted(set(ImageBody.model_fields) - {"prompt"})


def test_nulls_mean_what_leaving_out_means(api, engine):
    """Clients send null for what they do not set."""
    assert api.post(PATH, json={"prompt": "ant"}).status_code == 200
    assert api.post(PATH, json={"prompt": "ant", **dict.fromkeys(NULLABLE)}).status_code == 200
    first, second = (replace(request, seed=0) for request in engine.asked)
    assert first == second == ImageRequest(0, 0, 1, ABOUT.draft_steps, SAMPLING)


@pytest.mark.parametrize("name", NULLABLE)
def test_each_field_may_be_null_alone(api, name):
    assert api.post(PATH, json={"prompt": "ant", name: None}).status_code == 200


def test_every_setting_reaches_the_engine(api, engine):
    body = {
        "prompt": "dog",
        "model": "tandem-test",
        "n": 10,
        "size": "16x16",
        "output_format": "webp",
        "output_compression": 7,
        "seed": MAX_SEED,
        "draft_steps": 0,
        "cfg": 0,
        "top_k": 64,
        "top_p": 1,
        "temperatures": [10, 0.5, 1, 1.0],
        "deterministic": True,
        "quality": "hd",
        "style": "vivid",
        "background": "opaque",
        "moderation": "low",
        "user": "somebody",
        "safety_identifier": "somebody",
    }
    answer = api.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    sampling = replace(SAMPLING, cfg=0.0, top_k=64, top_p=1.0, temperatures=(10.0, 0.5, 1.0, 1.0))
    assert engine.asked == [ImageRequest(4, MAX_SEED, 10, 0, sampling, "webp", 7, True)]


def test_a_request_without_a_seed_gets_one_that_makes_the_image_again(api, engine):
    seeds = {api.post(PATH, json={"prompt": "ant"}).json()["tandem"]["seed"] for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    first = api.post(PATH, json={"prompt": "ant"}).json()
    again = api.post(PATH, json={"prompt": "ant", "seed": first["tandem"]["seed"]}).json()
    assert again["data"] == first["data"]


@pytest.mark.parametrize(
    ("asked", "scales"),
    [
        ({}, {1, 2, 3}),
        ({"partial_images": 0}, set()),
        ({"partial_images": 1}, {2}),
        ({"partial_images": 2}, {1, 3}),
        ({"partial_images": 3}, {1, 2, 3}),
        ({"preview_scales": []}, set()),
        ({"preview_scales": [3, 1, 3]}, {1, 3}),
    ],
)
def test_previews_are_those_asked_for_and_none_without_a_stream(api, engine, asked, scales):
    api.post(PATH, json={"prompt": "ant", "stream": True, **asked})
    assert engine.asked[0].preview_scales == scales
    if "partial_images" in asked:
        api.post(PATH, json={"prompt": "ant", **asked})
        assert engine.asked[1].preview_scales == frozenset()


@examples(deadline=None)
@given(num_scales=st.integers(2, 16), data=st.data())
def test_as_many_previews_as_asked_for_are_spread_over_the_scales(num_scales, data):
    count = data.draw(st.integers(0, num_scales - 1))
    scales = sorted(preview_scales(ImageBody(prompt="ant", partial_images=count), num_scales))
    assert len(scales) == count
    assert all(1 <= scale < num_scales for scale in scales)
    if count > 1:
        gaps = [b - a for a, b in pairwise(scales)]
        assert (scales[0], scales[-1]) == (1, num_scales - 1)
        assert max(gaps) - min(gaps) <= 1


ODD = {
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "lone surrogate as a name": b'{"prompt": "ant", "\\ud800": 1}',
    "NaN": b'{"prompt": "ant", "cfg": NaN}',
    "infinity": b'{"prompt": "ant", "temperatures": [1e999]}',
    "an integer of 4000 digits": b'{"prompt": "ant", "seed": ' + b"9" * 4000 + b"}",
    "an integer of 5000 digits": b'{"prompt": "ant", "seed": ' + b"9" * 5000 + b"}",
    "a float of 4000 digits": b'{"prompt": "ant", "cfg": ' + b"9" * 4000 + b"}",
    "900 lists": b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
    "30000 lists": b'{"prompt": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "5000 objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "not JSON": b"prompt=ant",
    "cut off": b'{"prompt": "ant"',
    "empty": b"",
    "null": b"null",
    "a list": b'[{"prompt": "ant"}]',
    "a zero byte": b'{"prompt": "\\u0000"}',
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_whatever_comes_is_answered_with_a_reason_and_never_a_fault(api, engine, body):
    answer = api.post(PATH, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert engine.asked == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_a_body_of_another_type_is_refused(api, engine, kind):
    answer = api.post(PATH, content=b'{"prompt": "ant"}', headers={"content-type": kind})
    assert answer.status_code in (400, 415)
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert engine.asked == []


def test_a_body_beyond_the_limit_is_refused_before_it_is_parsed(engine):
    api = client(make_gateway(engine, body=BodyLimit(100)))
    assert api.post(PATH, json={"prompt": "ant", "user": "x" * 20}).status_code == 200
    assert refused(api.post(PATH, content=b"{" * 101, headers=JSON), None, 413)["code"] == "body_too_large"
