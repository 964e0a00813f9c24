"""Encoded images: equal bytes for equal input, provenance that survives, metadata that other readers find."""

import io
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from tandem.errors import InputError
from tandem.images import (
    DIGITAL_SOURCE_TYPE,
    Provenance,
    codec_of,
    contact_sheet,
    cover,
    encode_image,
    encode_plain,
    read_provenance,
)

CODECS = ["png", "jpeg", "webp"]
PROVENANCE = Provenance("tandem 1.2", "d" * 64, "r" * 64, "v" * 64, seed=2**40, draft_steps=3).for_image(
    123456789, 6, 'tram & "train" <é>\n'
)


def picture(height=32, width=48) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 5, y * 7, x + y], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("codec", CODECS)
def test_equal_input_gives_equal_bytes_and_other_provenance_other_bytes(codec):
    first = encode_image(picture(), codec, 90, PROVENANCE)
    assert encode_image(picture().copy(), codec, 90, PROVENANCE) == first
    assert encode_image(np.asfortranarray(picture()), codec, 90, PROVENANCE) == first
    assert encode_image(picture(), codec, 90, PROVENANCE.for_image(1, 6, "tram")) != first


@pytest.mark.parametrize("codec", CODECS)
def test_provenance_comes_back(codec):
    assert read_provenance(encode_image(picture(), codec, 90, PROVENANCE)) == PROVENANCE


@pytest.mark.parametrize("codec", CODECS)
def test_xmp_names_the_digital_source_type(codec):
    data = encode_image(picture(), codec, 90, PROVENANCE)
    with Image.open(io.BytesIO(data)) as image:
        xmp = image.info["xmp"] if codec != "png" else image.text["XML:com.adobe.xmp"].encode()
    value = re.search(rb"<Iptc4xmpExt:DigitalSourceType>(.*?)</Iptc4xmpExt:DigitalSourceType>", xmp)
    assert value and value[1].decode() == DIGITAL_SOURCE_TYPE
    assert DIGITAL_SOURCE_TYPE.endswith("/trainedAlgorithmicMedia")


def test_xmp_stands_in_the_place_each_container_gives_it():
    """Found by the containers' own rules, not by Pillow's: chunk, segment and RIFF names."""
    png, jpeg, webp = (encode_image(picture(), codec, 90, PROVENANCE) for codec in CODECS)
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        body = png[at + 8 : at + 8 + length]
        chunks.setdefault(png[at + 4 : at + 8], []).append(body)
        assert zlib.crc32(png[at + 4 : at + 8 + length]) == struct.unpack_from(">I", png, at + 8 + length)[0]
        at += 12 + length
    keyword, flags = b"XML:com.adobe.xmp", b"\0\0\0\0\0"  # not compressed, no language, as XMP part 3 asks
    assert [body.startswith(keyword + flags) for body in chunks[b"iTXt"]] == [True]
    assert chunks[b"tEXt"] == [b"tandem\0" + PROVENANCE.to_json().encode()]
    assert b"\xff\xe1" in jpeg[:64] and b"http://ns.adobe.com/xap/1.0/\0" in jpeg[:128]
    assert webp[12:16] == b"VP8X" and webp[20] & 0b100 and b"XMP " in webp


def test_png_is_exact_and_the_lossy_codecs_are_close():
    for codec, most in (("png", 0), ("jpeg", 12), ("webp", 40)):
        with Image.open(io.BytesIO(encode_image(picture(), codec, 95, PROVENANCE))) as image:
            assert image.format == codec.upper() and image.mode == "RGB"
            difference = np.abs(np.asarray(image).astype(int) - picture().astype(int)).max()
        assert difference <= most, codec


def test_jpeg_keeps_full_chroma():
    with Image.open(io.BytesIO(encode_image(picture(), "jpeg", 90, PROVENANCE))) as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_quality_counts(codec):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = [len(encode_image(noise, codec, quality, PROVENANCE)) for quality in (1, 50, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 3


@pytest.mark.parametrize(
    ("pixels", "codec", "quality", "message"),
    [
        (
            picture().astype(np.float32),
            "png",
            90,
            r"pixels: expected uint8 \[H, W, 3\], got float32 \[32, 48",
        ),
        (picture()[..., 0], "png", 90, r"got uint8 \[32, 48\]"),
        (picture(), "gif", 90, "codec: expected one of png, jpeg, webp, got 'gif'"),
        (picture(), "jpeg", 0, "quality: expected 1 to 100, got 0"),
    ],
)
def test_wrong_input_is_refused(pixels, codec, quality, message):
    with pytest.raises(InputError, match=message):
        encode_image(pixels, codec, quality, PROVENANCE)


def test_a_codec_that_is_only_listed_is_not_written_as_another_one(monkeypatch):
    monkeypatch.setattr("tandem.images.check_codec", lambda *_: None)
    with pytest.raises(AssertionError, match="bmp"):
        encode_image(np.zeros((8, 8, 3), np.uint8), "bmp", 90, PROVENANCE)


def test_reading_what_tandem_did_not_write():
    with pytest.raises(InputError, match="expected a PNG, JPEG or WebP image"):
        read_provenance(b"not an image")
    plain = io.BytesIO()
    Image.fromarray(picture()).save(plain, "PNG")
    with pytest.raises(InputError, match="no Tandem provenance"):
        read_provenance(plain.getvalue())
    hostile = io.BytesIO()
    fields = PROVENANCE.for_image(1, 1, "cat").to_json().encode()
    tag = b'x xmlns:t="urn:x-tandem:provenance/1.0/"'
    entity = b"<!DOCTYPE x [<!ENTITY a '%s'>]><%s><t:provenance>&a;</t:provenance></x>" % (fields, tag)
    Image.fromarray(picture()).save(hostile, "JPEG", xmp=entity)
    with pytest.raises(InputError, match="no Tandem provenance"):
        read_provenance(hostile.getvalue())
    cut = io.BytesIO()
    xmp = b'<x xmlns:t="urn:x-tandem:provenance/1.0/"><t:provenance>{"seed":1}</t:provenance></x>'
    Image.fromarray(picture()).save(cut, "JPEG", xmp=xmp)
    with pytest.raises(InputError, match="cannot be read: KeyError"):
        read_provenance(cut.getvalue())


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 32), (32, 96), (16, 16), (1, 2048)])
def test_a_picture_is_brought_to_any_shape_without_distortion(width, height):
    """A disc at the centre of a square stays round, and at the centre."""
    y, x = np.mgrid[-16:16, -16:16] + 0.5
    disc = np.repeat(((x * x + y * y < 36) * 255).astype(np.uint8)[..., None], 3, axis=2)
    found = cover(disc, width, height)
    assert (found.shape, found.dtype) == ((height, width, 3), np.uint8)
    scale = max(width, height) / 32
    bright = found[..., 0] > 127
    if width > 1:
        assert abs(bright.any(axis=0).sum() - min(width, 12 * scale)) <= 2
        assert abs(bright.any(axis=1).sum() - min(height, 12 * scale)) <= 2
    np.testing.assert_array_equal(bright, bright[::-1, ::-1])


def test_a_picture_of_its_own_size_stays_as_it_is():
    np.testing.assert_array_equal(cover(picture(), 48, 32), picture())


def test_contact_sheet_places_images_row_by_row_with_room_for_captions():
    red, blue = (np.full((16, 16, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    sheet = np.asarray(contact_sheet([red, None, blue], ["first", "none", "third"], columns=2))
    is_red = (sheet == (255, 0, 0)).all(axis=-1)
    is_blue = (sheet == (0, 0, 255)).all(axis=-1)
    assert is_red.sum() == is_blue.sum() == 96 * 96  # enlarged by a whole factor
    rows, columns = np.nonzero(is_red)
    below, across = np.nonzero(is_blue)
    assert across.min() == columns.min() and below.min() > rows.max() + 12
    caption = sheet[rows.max() + 1 : below.min(), : columns.max()]
    assert (caption.min(axis=-1) < 100).any(), "a caption in dark letters stands below the image"
    assert (sheet[: below.min(), columns.max() + 8 :] == 255).all(), "None leaves its cell empty"


def test_a_long_caption_stays_in_its_cell():
    white = np.full((96, 96, 3), 255, np.uint8)
    sheet = np.asarray(contact_sheet([white, white], ["a caption far too long for one cell " * 3, ""], 2))
    half = sheet.shape[1] // 2
    assert (sheet[:, :half] < 100).any() and (sheet[:, half + 3 :] == 255).all()


@pytest.mark.parametrize("name", ["x" * 10_000, "n" * 2_000_000, "a b " * 50_000, "e\u0301" * 10_000])
def test_a_caption_however_long_takes_no_time_and_is_cut_alike(name):
    white = np.full((96, 96, 3), 255, np.uint8)
    began = time.monotonic()
    sheet = np.asarray(contact_sheet([white], [name], 1))
    assert time.monotonic() - began < 5  # 91 s before, letter by letter
    assert (sheet == np.asarray(contact_sheet([white], [name[:300]], 1))).all()


def test_contact_sheet_refuses_what_does_not_fit():
    image = picture()
    with pytest.raises(InputError, match="captions: expected 1, one for each image, got 2"):
        contact_sheet([image], ["a", "b"], 1)
    with pytest.raises(InputError, match="0 columns"):
        contact_sheet([image], ["a"], 0)
    with pytest.raises(InputError, match="0 cells"):
        contact_sheet([], [], 4)


def test_the_codec_of_a_file_is_told_by_its_bytes():
    image, found = Image.fromarray(np.zeros((4, 4, 3), np.uint8)), []
    for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "MPO"):
        out = io.BytesIO()
        image.save(out, name)
        found.append(codec_of(out.getvalue()))
    assert found == ["png", "jpeg", "webp", None, None, "jpeg"]
    assert codec_of(b"") is codec_of(b"no image") is None


def test_a_plain_png_has_the_pixels_and_no_words():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = encode_plain(pixels)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert image.info == {}
