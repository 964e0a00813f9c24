"""Forms with pictures, and files for them, odd ones too."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

EDITS, STREAM, VARIATIONS = "/v1/images/edits", "/v1/images/edits/stream", "/v1/images/variations"


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


def send(api: TestClient, path: str = EDITS, files: Any = None, **fields: Any) -> Any:
    """The answer to a form: a picture of 20 x 12 pixels and a class, unless told otherwise."""
    return api.post(path, files={"image": png()} if files is None else files, data={"prompt": "dog", **fields})


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
