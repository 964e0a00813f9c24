"""Edits on a real server, asked for by OpenAI's own client: what is kept, what is drawn, and the bytes of a seed."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image

from support.served import Served
from tandem.images import EDITED_SOURCE_TYPE, read_provenance

BOX = (20, 18, 44, 40)  # left, top, right, bottom


@pytest.fixture(scope="module")
def openai(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key=served.key or "none", max_retries=0)


@pytest.fixture(scope="module")
def photo(served: Served) -> bytes:
    """A face that the server made, and a margin beside it: 80 x 64 pixels."""
    status, made = served.post(prompt="face", seed=3, deterministic=True)
    assert status == 200
    face = Image.open(io.BytesIO(base64.b64decode(made["data"][0]["b64_json"])))
    wide = Image.new("RGB", (80, 64), (40, 90, 200))
    wide.paste(face, (8, 0))
    out = io.BytesIO()
    wide.save(out, "PNG")
    return out.getvalue()


def mask(size: tuple[int, int] = (80, 64), box: tuple[int, int, int, int] = BOX) -> bytes:
    pixels = np.full((size[1], size[0], 4), 255, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2], 3] = 0
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def edit(openai: OpenAI, photo: bytes, prompt: str = "flag", hole: bytes | None = None, **extra: Any) -> list[bytes]:
    made = openai.images.edit(
        image=("photo.png", photo),
        mask=("mask.png", hole or mask()),
        prompt=prompt,
        n=extra.pop("n", 1),
        extra_body={"blend": "paste", "deterministic": True, "seed": 1} | extra,
    )
    return [base64.b64decode(image.b64_json) for image in made.data]


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_an_edit_keeps_what_is_outside_draws_what_is_inside_and_has_the_bytes_of_its_seed(openai, photo):
    first, second = edit(openai, photo, n=2)
    assert edit(openai, photo, n=2) == [first, second]
    outside = np.ones((64, 80), bool)
    outside[BOX[1] : BOX[3], BOX[0] : BOX[2]] = False
    given = pixels_of(photo)
    for data in (first, second, *edit(openai, photo, seed=2), *edit(openai, photo, prompt="none")):
        np.testing.assert_array_equal(pixels_of(data)[outside], given[outside])
        assert (pixels_of(data) != given).any()
    assert len({first, second, *edit(openai, photo, seed=2), *edit(openai, photo, prompt="none")}) == 4
    for draft_steps in (0, 7):
        assert (pixels_of(edit(openai, photo, draft_steps=draft_steps)[0]) != given).any()
    about = read_provenance(first)
    assert about is not None and about.edit and about.edit["edited_share"] == round(24 * 22 / (80 * 64), 6)
    assert EDITED_SOURCE_TYPE.encode() in first


def test_edits_share_batches_with_plain_images_and_a_full_mask_is_a_plain_image(served, openai, photo):
    square = io.BytesIO()
    Image.open(io.BytesIO(photo)).crop((8, 0, 72, 64)).save(square, "PNG")
    full = mask((64, 64), (0, 0, 64, 64))
    status, plain = served.post(prompt="fruit", seed=9, deterministic=True)
    assert status == 200
    (edited,) = edit(openai, square.getvalue(), "fruit", full, seed=9)
    np.testing.assert_array_equal(pixels_of(edited), pixels_of(base64.b64decode(plain["data"][0]["b64_json"])))
    asks = [partial(edit, openai, photo, seed=i, deterministic=False) for i in range(6)]
    asks += [partial(served.post, prompt="face", seed=i) for i in range(6)]
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda ask: ask(), asks))
    assert all(len(images) == 1 for images in made[:6]) and all(status == 200 for status, _ in made[6:])


def test_a_stream_of_an_edit_has_previews_and_a_variation_keeps_coarse_scales(openai, photo):
    events = list(
        openai.images.edit(
            image=("photo.png", photo), mask=("mask.png", mask()), prompt="flag", stream=True, partial_images=3
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image"] * 3 + ["image_edit.completed"]
    assert all(Image.open(io.BytesIO(base64.b64decode(event.b64_json))).size == (80, 64) for event in events)
    far, near = (
        openai.images.create_variation(
            image=("photo.png", photo), extra_body={"keep_scales": keep, "seed": 4, "blend": "none"}
        )
        for keep in (1, 6)
    )
    given = pixels_of(photo).astype(int)
    distances = [np.abs(pixels_of(base64.b64decode(made.data[0].b64_json)) - given).mean() for made in (far, near)]
    assert distances[1] < 0.7 * distances[0]  # more scales of the picture, more like it


def test_a_mask_of_another_size_is_one_clear_error(openai, photo):
    with pytest.raises(BadRequestError, match="expected a mask of the picture's size, 80 x 64, got 64 x 64"):
        edit(openai, photo, hole=mask((64, 64), (0, 0, 9, 9)))
