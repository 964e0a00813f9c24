"""Edits and variations over HTTP, with an engine of plain Python: what it is asked for, and what is refused."""

from __future__ import annotations

import io
import json
import zlib

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image
from starlette.testclient import TestClient

from support.api_server import listening
from support.fake_engine import NUM_TOKENS, FakeEngine, K, client, events_of, make_gateway
from tandem_workers.requests import edit_check, edit_schema

EDITS, STREAM, VARIATIONS = "/v1/images/edits", "/v1/images/edits/stream", "/v1/images/variations"
NONE = 5  # behind the five classes of the fake engine


@pytest.fixture(scope="module")
def engine_and_api() -> tuple[FakeEngine, TestClient]:
    engine = FakeEngine()
    return engine, client(make_gateway(engine, max_n=4))


def png(width=20, height=12, mode="RGB", **more) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, "PNG", **more)
    return out.getvalue()


def mask_png(box=(2, 2, 8, 8), width=20, height=12) -> bytes:
    """White where the picture is drawn anew."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def clear_png(box=(2, 2, 8, 8), width=20, height=12) -> bytes:
    """Transparent where the picture is drawn anew, as OpenAI has it."""
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2], 3] = 0
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def send(api: TestClient, path: str = EDITS, files=None, **fields):
    return api.post(path, files={"image": png()} if files is None else files, data={"prompt": "dog", **fields})


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


def bomb(side: int = 60_000) -> bytes:
    """A PNG whose header promises far more pixels than it has."""
    data = bytearray(png(4, 4))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def gif() -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(np.full((12, 20, 3), value, np.uint8)) for value in (0, 255)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    ("files", "fields", "status", "message"),
    [
        ({}, {"box": "0,0,1,1"}, 400, "body: expected multipart/form-data"),
        ({"mask": mask_png()}, {}, 400, "image: expected an image file, got none"),
        ({"image": b""}, {"box": "0,0,1,1"}, 400, "image: the file is empty"),
        ({"image": b"<html>"}, {"box": "0,0,1,1"}, 400, "image: not an image"),
        ({"image": gif()}, {"box": "0,0,1,1"}, 400, "image: expected a still picture, got several frames"),
        ({"image": png(mode="I;16")}, {"box": "0,0,1,1"}, 400, "image: expected 8 bits a channel"),
        (
            {"image": bomb(10_000)},
            {"box": "0,0,1,1"},
            413,
            "image: expected at most 16777216 pixels, got 10000",
        ),
        ({"image": bomb()}, {"box": "0,0,1,1"}, 413, "image: expected at most 16777216 pixels"),
        ({"image": png(), "mask": bomb()}, {}, 413, "mask: expected at most 16777216 pixels"),
        ({"image": png(), "mask": mask_png(width=8)}, {}, 400, "mask: expected a mask of the picture's size, 20 x 12"),
        ({"image": png(), "mask": mask_png()}, {"box": "0,0,1,1"}, 400, "box: expected either it or mask"),
        ({"image": png()}, {}, 400, "mask: expected one (or box, expand,"),
        ({"image": png()}, {"box": "0,0,30,30"}, 400, "box: expected one within 20 x 12 pixels"),
        ({"image": png()}, {"box": "a"}, 400, "box: expected x0,y0,x1,y1"),
        ({"image": png()}, {"expand": "99,0,0,0"}, 400, "expand: expected margins that make"),
        ({"image": png()}, {"box": "0,0,1,1", "prompt": "unicorn"}, 400, "prompt: expected"),
        ({"image": png()}, {"box": "0,0,1,1", "n": "two"}, 400, "n: expected a valid integer, got 'two'"),
        ({"image": png()}, {"box": "0,0,1,1", "n": "9"}, 400, "n: expected less than or equal to 4, got 9"),
        (
            {"image": png()},
            {"box": "0,0,1,1", "keep_scales": "4"},
            400,
            "keep_scales: expected less than or equal",
        ),
        ({"image": png()}, {"box": "0,0,1,1", "size": "16x16"}, 400, "size: expected auto or the picture's own, 20x12"),
        ({"image": png()}, {"box": "0,0,1,1", "response_format": "url"}, 400, "response_format: expected b64_json"),
        ({"image": png()}, {"box": "0,0,1,1", "seeds": "1"}, 400, "seeds: unknown parameter"),
        ({"image": png(), "picture": png()}, {"box": "0,0,1,1"}, 400, "picture: a file that is not known here"),
        ({"image": png()}, {"box": "0,0,1,1", "mask": "0,0,1,1"}, 400, "mask: expected a file, got text"),
    ],
)
def test_wrong_input_is_one_clear_error(api, engine, files, fields, status, message):
    answer = send(api, files=files, **fields)
    assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text
    assert engine.asked == []


def tiff(frames: int = 2) -> bytes:
    out = io.BytesIO()
    pages = [Image.new("L", (20, 12), value) for value in range(frames)]
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    return out.getvalue()


def ico() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "ICO")
    return out.getvalue()


def thin(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (width, height)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("files", "fields", "status", "message"),
    [
        ({"image": tiff()}, {"box": "0,0,1,1"}, 400, "image: expected a still picture, got several frames"),
        ({"image": ico()}, {"box": "0,0,1,1"}, 400, "image: not an image"),  # Pillow decodes these to open them
        ({"image": thin(5000, 2)}, {"box": "0,0,1,1", "fit": "pad"}, 413, "fit: expected a square of at most"),
        ({"image": png()}, {"expand": "0.01,0,0,0"}, 400, "expand: expected a margin of a pixel or more"),
        ({"image": png()}, {"box": "0,0,1,1", "seed": "1" * 70_000}, 400, "body: expected multipart/form-data"),
        ({"image": png()}, {"box": "0,0,1,1", "a": "1" * 40_000, "b": "1" * 40_000}, 413, "characters in fields"),
        ({"image": png()}, {"box": "0,0,1,1", "n": "[" * 600 + "]" * 600}, 400, "n: expected a valid integer"),
        ({"image": png()}, {"box": "0,0,1,1", "keep_scale": "1"}, 400, "did you mean `keep_scales`?"),
    ],
    ids=["tiff", "ico", "thin", "no margin", "long field", "long fields", "deep", "misspelt"],
)
def test_what_takes_memory_or_time_is_refused(api, engine, files, fields, status, message):
    answer = send(api, files=files, **fields)
    assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text[:500]
    assert engine.asked == []


@pytest.mark.parametrize("charset", ["punycode", "undefined", "utf-16"])
def test_the_client_chooses_no_codec(api, charset):
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    answer = api.post(EDITS, content=b"--b--", headers={"content-type": kind})
    assert answer.status_code == 400 and "charset=utf-8" in answer.text


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
