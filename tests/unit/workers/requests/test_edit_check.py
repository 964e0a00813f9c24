"""Edits and variations over HTTP, with an engine of plain Python: what it is asked for, and what is refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image
from starlette.testclient import TestClient

from support.api_server import listening
from support.edit_forms import EDITS, STREAM, VARIATIONS, clear_png, gif, mask_png, png, send, thin
from support.fake_engine import NUM_TOKENS, FakeEngine, K, client, events_of, make_gateway
from tandem_workers.requests import edit_check, edit_schema

NONE = 5  # behind the five classes of the fake engine


@pytest.fixture(scope="module")
def engine_and_api() -> tuple[FakeEngine, TestClient]:
    engine = FakeEngine()
    return engine, client(make_gateway(engine, max_n=4))


@pytest.mark.parametrize(
    ("files", "fields"),
    [
        ({"image": png(), "mask": mask_png()}, {}),
        ({"image": png(), "mask": clear_png()}, {}),
        ({"image": clear_png()}, {}),
        ({"image": png()}, {"box": "2,2,8,8"}),
        ({"image": png()}, {"box": "2,2,8,4;2,4,8,8"}),
        ({"image[]": png()}, {"box": "2,2,8,8"}),
    ],
    ids=["white mask", "clear mask", "the picture's own alpha", "box", "boxes", "a list of one"],
)
def test_the_mask_is_what_is_drawn_anew(api, engine, files, fields):
    answer = send(api, files=files, **fields)
    assert answer.status_code == 200, answer.text
    edit = engine.asked[0].edit
    expected = np.zeros((12, 20), bool)
    expected[2:8, 2:8] = True
    np.testing.assert_array_equal(edit.found.mask, expected)
    assert edit.square.shape == (16, 16, 3) and edit.square_mask.shape == (16, 16) and edit.square_mask.any()
    told = answer.json()["tandem"]["edit"]
    assert told["edited_share"] == 36 / 240 and (told["fit"], told["blend"], told["keep_scales"]) == (
        "crop",
        "feather",
        0,
    )
    assert (
        answer.json()["size"] == "20x12"
        and answer.json()["usage"]["input_tokens_details"]["image_tokens"] == NUM_TOKENS
    )


def test_fields_of_a_form_become_those_of_a_request(api, engine):
    fields = {
        "box": "0,0,1,1",
        "n": "2",
        "seed": "7",
        "draft_steps": "1",
        "cfg": "2.5",
        "deterministic": "true",
        "temperatures[]": ["1", "0.5"],
        "fit": "pad",
        "blend": "paste",
        "keep_scales": "2",
        "output_format": "webp",
        "input_fidelity": "high",
    }
    answer = send(api, **fields)
    assert answer.status_code == 200, answer.text
    request = engine.asked[0]
    assert (request.label, request.n, request.seed, request.draft_steps) == (4, 2, 7, 1)
    assert request.sampling.cfg == 2.5 and request.sampling.temperatures == (1.0, 0.5)
    assert request.deterministic and request.codec == "webp" and request.kept_scales == 2
    assert request.edit.put_back.blend == "paste" and request.edit.fit == "pad"
    send(api, box="0,0,1,1", temperatures="[1, 0.25]", deterministic="False")
    assert engine.asked[1].sampling.temperatures == (1.0, 0.25) and not engine.asked[1].deterministic


def test_no_class_is_called_none_here_so_none_fills_without_one(api, engine):
    answer = send(api, box="0,0,1,1", prompt="none")
    assert engine.asked[0].label == NONE and answer.json()["tandem"]["class_name"] == "none"
    assert api.post("/v1/images/generations", json={"prompt": "none"}).status_code == 400


def test_an_empty_mask_is_said(api, engine):
    answer = send(api, files={"image": png(), "mask": mask_png((0, 0, 0, 0))})
    assert answer.json()["tandem"]["edit"]["message"] == "the mask is empty: the picture is as it was"
    assert "message" not in send(api, box="0,0,1,1").json()["tandem"]["edit"]


def test_margins_are_painted_around_the_picture(api, engine):
    assert send(api, expand="0.5,0,0.5,0", fit="pad").json()["size"] == "40x12"
    mask = engine.asked[0].edit.found.mask
    assert mask.shape == (12, 40) and mask[:, :10].all() and not mask[:, 10:30].any() and mask[:, 30:].all()


def test_the_view_is_as_close_as_the_mask_allows(api, engine):
    for box, fit in (("2,2,8,8", "crop"), ("0,0,1,1", "pad"), ("0,0,13,4", "pad")):
        assert send(api, box=box).json()["tandem"]["edit"]["fit"] == fit
    assert "mask: expected one within a square of 12 pixels" in send(api, box="0,0,1,1", fit="crop").text


def test_a_variation_keeps_coarse_scales_and_needs_no_class(api, engine):
    answer = api.post(VARIATIONS, files={"image": png()})
    assert answer.status_code == 200, answer.text
    request = engine.asked[0]
    assert request.label == NONE and request.kept_scales == K // 2 and request.edit.found.mask.all()
    assert api.post(VARIATIONS, files={"image": png()}, data={"prompt": "tom", "keep_scales": "1"}).status_code == 200
    assert (engine.asked[1].label, engine.asked[1].kept_scales) == (3, 1)
    refused = api.post(VARIATIONS, files={"image": png(), "mask": mask_png()})
    assert refused.status_code == 400 and "mask: a file that is not known here" in refused.text


def test_a_stream_has_previews_of_the_scales_that_are_drawn_and_events_of_its_own(api, engine):
    fields = {"prompt": "dog", "box": "0,0,1,1", "keep_scales": "1", "partial_images": "2"}
    by_field = api.post(EDITS, files={"image": png()}, data=fields | {"stream": "true", "seed": "3"})
    by_path = api.post(STREAM, files={"image": png()}, data=fields | {"seed": "3"})
    for answer in (by_field, by_path):
        events = events_of(answer.text)
        assert [name for name, _ in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
        assert [data["scale"] for _, data in events[:2]] == [2, 3] and events[0][1]["size"] == "20x12"
        assert all(name == data["type"] for name, data in events)
        assert events[-1][1]["tandem"]["edit"]["keep_scales"] == 1


def test_a_thin_picture_is_stretched_and_a_clear_one_is_all_drawn(api, engine):
    assert send(api, files={"image": thin(5000, 2)}, box="0,0,1,1").json()["tandem"]["edit"]["fit"] == "resize"
    clear = io.BytesIO()
    Image.new("RGBA", (20, 12), (0, 0, 0, 0)).save(clear, "PNG")
    assert send(api, files={"image": clear.getvalue()}).json()["tandem"]["edit"]["keep_scales"] == 0
    assert engine.asked[1].edit.found.mask.all()


def test_the_path_that_streams_takes_no_other_wish(api):
    answer = api.post(STREAM, files={"image": png()}, data={"prompt": "dog", "box": "0,0,1,1", "stream": "false"})
    assert answer.status_code == 400 and "stream: expected true" in answer.text


def test_of_several_pictures_a_lenient_server_takes_the_first(api, engine):
    """As LibreChat's image tools send them: `image[]` for each, no mask."""
    files = [("image[]", ("a.png", png())), ("image[]", ("b.png", png(8, 8)))]
    fields = {"model": "gpt-image-1", "prompt": "a dog in the sun", "quality": "auto", "size": "auto"}
    strict = api.post(EDITS, files=files, data=fields)
    assert strict.status_code == 400 and "image: expected one file, got more" in strict.text
    answer = client(make_gateway(engine, lenient=True)).post(EDITS, files=files, data=fields)
    assert answer.status_code == 200 and answer.json()["size"] == "20x12"
    noted = [note["param"] for note in answer.json()["tandem"]["lenient"]]
    assert sorted(noted) == ["image", "mask", "model", "prompt"]


def test_all_reasons_come_at_once(api):
    text = send(api, files={"image": gif()}, n="0", prompt="unicorn", blend="glue").json()["error"]["message"]
    assert all(f"{name}: expected" in text for name in ("n", "blend", "prompt", "image"))


def test_the_images_of_a_request_have_a_limit_together(api, engine, monkeypatch):
    monkeypatch.setattr(edit_check, "MAX_PICTURE_PIXELS", 500)
    assert send(api, box="0,0,1,1", n="2").status_code == 200
    assert "n: expected at most 500 pixels" in send(api, box="0,0,1,1", n="3").text


def test_bodies_of_edits_alone_may_be_large(api):
    assert edit_schema.MAX_EDIT_BYTES == 25 << 20
    large = png() + bytes(1 << 20)
    assert send(api, files={"image": large}, box="0,0,1,1").status_code == 200
    assert send(api, files={"image": png() + bytes(25 << 20)}, box="0,0,1,1").status_code == 413
    assert api.post("/v1/images/generations", content=b" " * (1 << 20) + b"{}").status_code == 413


def test_pictures_in_flight_are_limited(engine, api):
    with make_gateway(FakeEngine()).admission.admit(1, 8 << 24):
        pass
    gateway = make_gateway(engine)
    with gateway.admission.admit(1, 8 << 24):
        answer = send(client(gateway), box="0,0,1,1")
    assert answer.status_code == 429 and "pixels of pictures in flight" in answer.text


def test_a_lenient_server_takes_what_other_clients_send(engine):
    api = client(make_gateway(engine, lenient=True))
    fields = {"size": "32x32", "response_format": "url", "guidance_scale": "2", "model": "dall-e-2", "strength": "0.5"}
    answer = send(api, **fields)
    assert answer.status_code == 200, answer.text
    request, notes = engine.asked[0], answer.json()["tandem"]["lenient"]
    assert request.size == (32, 32) and request.sampling.cfg == 2 and request.kept_scales == K // 2
    assert {note["param"] for note in notes} >= {"size", "response_format", "cfg", "model", "strength", "mask"}
    assert api.post(VARIATIONS, files={"image": png()}, data={"size": "8x8"}).json()["size"] == "8x8"


@pytest.mark.parametrize(
    "path", ["/openai/v1/images/edits?check=1", "/openai/deployments/tandem-test/images/edits?check=1"]
)
def test_azures_paths_take_edits_too(api, engine, path):
    assert send(api, path, box="0,0,1,1").status_code == 200
    assert len(engine.asked) == 1


def test_openais_client_edits_varies_and_streams():
    engine = FakeEngine()
    with listening(make_gateway(engine)) as url:
        openai = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        made = openai.images.edit(
            image=("a.png", png()),
            mask=("m.png", clear_png()),
            prompt="dog",
            n=2,
            extra_body={"seed": 1, "temperatures": [1, 0.5]},
        )
        assert len(made.data) == 2 and engine.asked[0].sampling.temperatures == (1.0, 0.5)
        assert made.model_extra["tandem"]["edit"]["edited_share"] == 36 / 240
        varied = openai.images.create_variation(image=("a.png", png()), n=1, response_format="b64_json")
        assert len(varied.data) == 1 and engine.asked[1].kept_scales == K // 2
        with openai.images.edit(image=[("a.png", clear_png())], prompt="tom", stream=True, partial_images=1) as stream:
            kinds = [event.type for event in stream]
        assert kinds == ["image_edit.partial_image", "image_edit.completed"]


def test_the_document_declares_forms(api):
    document = api.get("/openapi.json").json()
    for path, required in ((EDITS, ["image", "prompt"]), (STREAM, ["image", "prompt"]), (VARIATIONS, ["image"])):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert schema["required"] == required and schema["properties"]["image"]["format"] == "binary"
        assert "keep_scales" in json.dumps(schema)
    assert "EditStreamEvent" in document["components"]["schemas"]
