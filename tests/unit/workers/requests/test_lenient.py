"""`--lenient`: what clients of other servers ask for is taken, and everything that was changed is said."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from support.fake_engine import ABOUT, PATH, SIZE, FakeEngine, K, client, events_of, make_gateway
from tandem_workers.requests.api_schema import MAX_SEED
from tandem_workers.requests.lenient import MAX_NOTES, MAX_SIDE, translate
from tandem_workers.requests.messages import ImageRequest

DOG = 4


@pytest.fixture(scope="module")
def engine_and_api() -> tuple[FakeEngine, TestClient]:
    engine = FakeEngine()
    return engine, client(make_gateway(engine, lenient=True))


def asked(api: TestClient, engine: FakeEngine, **body: Any) -> tuple[ImageRequest, dict[str, str]]:
    """What the engine was asked for, and the notes of the answer by field."""
    answer = api.post(PATH, json={"prompt": "dog", **body})
    assert answer.status_code == 200, answer.text
    (request,) = engine.asked
    return request, {note["param"]: note["message"] for note in answer.json()["tandem"]["lenient"]}


def refused(api: TestClient, **body: Any) -> dict[str, Any]:
    answer = api.post(PATH, json={"prompt": "dog", **body})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_a_request_of_this_api_is_answered_as_ever_without_a_note(api, engine):
    body = {"seed": 5, "n": 2, "cfg": 1.0, "draft_steps": 2, "size": SIZE, "model": ABOUT.model_id, "quality": "hd"}
    request, notes = asked(api, engine, **body)
    assert notes == {}
    strict_engine = FakeEngine()
    answer = client(make_gateway(strict_engine)).post(PATH, json={"prompt": "dog", **body})
    assert strict_engine.asked == [request]
    assert "lenient" not in answer.json()["tandem"]


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({"size": "1024x1024"}, (1024, 1024)),
        ({"size": "1792x1024"}, (1792, 1024)),
        ({"size": "32*24"}, (32, 24)),
        ({"width": 640, "height": 480}, (640, 480)),
        ({"width": 640.0}, (640, 640)),
        ({"height": 480}, (480, 480)),
        ({"width": 640, "size": "32x24"}, (32, 24)),
        ({"size": f"{MAX_SIDE}x1"}, (MAX_SIDE, 1)),
    ],
)
def test_any_size_is_made_and_said(api, engine, body, size):
    answer = api.post(PATH, json={"prompt": "dog", **body}).json()
    assert engine.asked[0].size == size
    assert answer["size"] == "x".join(map(str, size))
    (note,) = [note for note in answer["tandem"]["lenient"] if note["param"] == "size"]
    assert "made at 16x16" in note["message"] and ("cropped" in note["message"]) == (size[0] != size[1])


@pytest.mark.parametrize("size", [None, "auto", SIZE])
def test_the_models_own_size_is_nothing_to_speak_of(api, engine, size):
    request, notes = asked(api, engine, size=size)
    assert request.size is None and notes == {}


@pytest.mark.parametrize("size", [f"{MAX_SIDE + 1}x8", "0x8", "1K", "16:9", "1e3x8", "-1x8", "", "99999999999x1"])
def test_a_size_out_of_bounds_is_refused(api, engine, size):
    assert refused(api, size=size)["message"].startswith(
        f"size: expected auto or WIDTHxHEIGHT, each from 1 to {MAX_SIDE}"
    )
    assert engine.asked == []


@pytest.mark.parametrize("body", [{"width": "big"}, {"width": -5, "height": 8}, {"width": True}, {"size": 5}])
def test_a_size_of_another_kind_is_refused(api, body):
    assert refused(api, **body)["param"] in ("size", "width")


def test_the_pixels_of_a_request_are_bounded_and_a_refused_one_gets_all_reasons(api, engine):
    assert asked(api, engine, size="2048x2048", n=4)[0].n == 4
    error = refused(api, size="2048x2048", n=5, seed="x", prompt="unicorn")
    assert "pixels in all images of a request, got 5 x 2048 x 2048" in error["message"]
    assert "seed: expected" in error["message"] and "the nearest are" in error["message"]


def test_previews_have_the_size_too(api, engine):
    events = events_of(
        api.post(PATH, json={"prompt": "dog", "size": "32x24", "stream": True, "partial_images": 50}).text
    )
    assert {event["size"] for _, event in events} == {"32x24"}
    assert len(events) == K - 1 + 1
    assert {note["param"] for note in events[-1][1]["tandem"]["lenient"]} == {"size", "partial_images"}


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"guidance_scale": 4}, "cfg", 4.0),
        ({"cfg_scale": 4.5}, "cfg", 4.5),
        ({"cfg": 2, "cfg_scale": 4.5}, "cfg", 2.0),
        ({"num_images": 3.0}, "n", 3),
        ({"batch_size": 2, "n": None}, "n", 2),
        ({"image_format": "jpg"}, "codec", "jpeg"),
        ({"output_format": "WEBP"}, "codec", "webp"),
        ({"seed": MAX_SEED + 8}, "seed", 7),
        ({"extra_body": {"seed": 9, "draft_steps": 1}}, "seed", 9),
        ({"extra_body": {"seed": 9}, "seed": 3}, "seed", 3),
    ],
)
def test_fields_with_a_meaning_here_are_translated(api, engine, body, field, value):
    request, _ = asked(api, engine, **body)
    found = getattr(request.sampling if field == "cfg" else request, field)
    assert found == value and type(found) is type(value)


def test_a_seed_below_0_is_a_random_one(api, engine):
    request, notes = asked(api, engine, seed=-1)
    assert request.seed >= 0 and "random" in notes["seed"]


@pytest.mark.parametrize(
    "body",
    [
        {"num_inference_steps": 30},
        {"negative_prompt": "blurry"},
        {"clip_skip": 2, "mode": 1},
        {"something_new": {"deep": [1]}},
        {"quality": "ultra", "style": "anime", "background": "transparent", "moderation": ["?"]},
        {"model": "dall-e-9", "response_format": "b64_json"},
        {"model": 7},
        {"image_base64": "data:image/png;base64,AAAA"},
    ],
)
def test_what_has_no_meaning_here_is_left_out_and_said(api, engine, body):
    request, notes = asked(api, engine, **body, seed=5)
    assert set(notes) >= set(body) - {"response_format"}
    assert request == ImageRequest(DOG, 5, 1, ABOUT.draft_steps, ABOUT.sampling)


@pytest.mark.parametrize(
    ("name", "ours"),
    [("drafts_steps", "draft_steps"), ("sede", "seed"), ("outputformat", "output_format"), ("cgf", "cfg")],
)
@pytest.mark.parametrize("lenient", [True, False])
def test_a_misspelt_field_is_refused_with_the_right_one(api, engine, lenient, name, ours):
    asked_api = api if lenient else client(make_gateway(engine))
    assert refused(asked_api, **{name: 1})["message"] == f"{name}: unknown parameter; did you mean `{ours}`?"
    assert engine.asked == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 11),
        ("num_images", 11),
        ("cfg_scale", 50),
        ("response_format", "file"),
        ("output_format", "gif"),
        ("label", 5),
        ("draft_steps", K + 1),
        ("top_k", ABOUT.vocab_size + 1),
        ("temperatures", []),
        ("cfg_schedule", "never"),
        ("preview_scales", [K]),
        ("prompt", ""),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_as_ever(api, engine, name, value):
    assert refused(api, **{name: value})["param"].partition(".")[0] in (name, "n", "cfg")
    assert engine.asked == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"model": "dall-e-2"}, "url"),
        ({"model": "dall-e-3", "response_format": "b64_json"}, "b64_json"),
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"response_format": "base64"}, "b64_json"),
        ({"image_base64": False}, "url"),
        ({"image_base64": True}, "b64_json"),
    ],
)
def test_images_come_as_the_client_expects_them(api, body, kind):
    assert list(api.post(PATH, json={"prompt": "dog", **body}).json()["data"][0]) == [kind]


def test_the_class_that_was_found_is_said_with_its_score(api, engine):
    answer = api.post(PATH, json={"prompt": "A big dog, and a bee, " + "x" * 30_000}).json()
    (note,) = answer["tandem"]["lenient"]
    assert engine.asked[0].label == DOG and answer["tandem"]["class_name"] == "dog"
    assert note["score"] == 1.0 and "class 4 (dog)" in note["message"] and "'bee' (1.00)" in note["message"]
    assert len(note["message"]) < 300


@pytest.mark.parametrize("prompt", ["bee, honeybee", "#3", "honeybee", "4", " DOG "])
def test_a_prompt_that_names_a_class_is_nothing_to_speak_of(api, engine, prompt):
    assert asked(api, engine, prompt=prompt)[1] == {}


def test_what_follows_a_bar_is_not_asked_for(api, engine):
    assert asked(api, engine, prompt="a photo of a bee|dog")[0].label == 1


def test_a_prompt_that_names_no_class_is_refused_with_the_nearest(api):
    error = refused(api, prompt="a unicorn")
    assert (error["param"], error["code"]) == ("prompt", "class_not_found")
    assert "the nearest are ant, bee, Cat, tom, dog" in error["message"]


def test_notes_are_bounded(api, engine):
    _, notes = asked(api, engine, **{f"a{i}": i for i in range(5000)})
    assert len(notes) == MAX_NOTES + 1 and notes[""] == f"and {5000 - MAX_NOTES} more fields were ignored"


def test_names_in_notes_are_bounded(api, engine):
    _, notes = asked(api, engine, **{"x" * 60_000: 1})
    assert list(notes) == [f"{'x' * 80}…"]


def test_a_translated_request_stays_as_it_is():
    body = {"prompt": "dog", "width": 32, "guidance_scale": 3, "model": "x", "seed": -1, "foo": 1}
    once = translate(body, ABOUT).values
    again = translate(once, ABOUT)
    assert (again.values, again.notes) == (once, [])
    assert body["width"] == 32  # the request itself is left as it came


def test_the_path_that_always_streams_takes_the_same_and_links_are_not_its_default(api):
    """Clients of dall-e models expect links, but not in events."""
    events = api.post(f"{PATH}/stream", json={"prompt": "dog", "model": "dall-e-3", "guidance_scale": 2}).text
    assert "event: image_generation.completed" in events and '"b64_json"' in events and '"url"' not in events
    assert "taken from `guidance_scale`" in events and '"response_format"' not in events
