"""Forms that are refused, each with one clear error, and what they may cost."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from support.edit_forms import EDITS, bomb, gif, ico, mask_png, png, send, thin, tiff
from support.fake_engine import FakeEngine, client, make_gateway


@pytest.fixture(scope="module")
def engine_and_api() -> tuple[FakeEngine, TestClient]:
    engine = FakeEngine()
    return engine, client(make_gateway(engine, max_n=4))


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
