"""Folders of people's own images: which files count, what their pixels are, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tandem.errors import InputError
from tandem.image_folder import MAX_PIXELS, list_image_folder, read_image
from tandem.training.pictures import load_pictures

RED = (200, 30, 40)


def plain(colour=RED, size=(4, 4)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture
def root(tmp_path):
    """Two classes, `ant` and `bee`, with one image each."""
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        plain().save(tmp_path / name / "a.png")
    return tmp_path


def names(root, **options) -> list[tuple[int, str]]:
    return [(file.label, file.name) for file in list_image_folder(root, **options).files]


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN"])
def test_hidden_and_system_folders_are_no_classes(root, folder):
    for place in (root / folder, root / "ant" / folder):
        place.mkdir()
        plain().save(place / "a-checkpoint.png")
    found = list_image_folder(root)
    assert found.classes == ("ant", "bee") and names(root) == [(0, "a"), (1, "a")]
    assert found.notes == (f"{root}: left out 2 hidden or system entries, such as {root / folder}",)
    assert load_pictures(root).notes == found.notes


def test_hidden_files_and_files_of_other_kinds_are_left_out_with_a_note(root):
    (root / "ant" / "._a.png").write_bytes(b"\0\5\x16\7AppleDouble")
    (root / "ant" / "notes.txt").write_text("x")
    (root / "bee" / "photo.heic").write_bytes(b"x")
    plain().save(root / "loose.jpg")
    found = list_image_folder(root)
    assert names(root) == [(0, "a"), (1, "a")]
    assert [note.split(": left out ")[1] for note in found.notes] == [
        f"1 hidden or system entries, such as {root / 'ant' / '._a.png'}",
        f"2 files that are no images, such as {root / 'ant' / 'notes.txt'}",
        f"1 loose images, such as {root / 'loose.jpg'}",
    ]


@pytest.mark.parametrize("suffix", [".JPG", ".PNG", ".jpeg", ".JPEG", ".webp", ".WebP", ".bmp", ".gif", ".TIF", ".ppm"])
def test_endings_of_any_case_are_images(root, suffix):
    plain().save(root / "ant" / f"b{suffix}")
    assert names(root) == [(0, "a"), (0, "b"), (1, "a")]
    assert np.abs(read_image(root / "ant" / f"b{suffix}").astype(int) - RED).max() < 12


def test_nested_folders_belong_to_their_class(root):
    (root / "ant" / "images" / "deep").mkdir(parents=True)
    plain().save(root / "ant" / "images" / "deep" / "b.png")
    (root / "ant" / "images" / "loop").symlink_to(root / "ant")
    assert names(root) == [(0, "a"), (0, "images/deep/b"), (1, "a")]


def test_images_that_differ_in_their_ending_alone_are_two(root):
    plain().save(root / "ant" / "a.jpg")
    assert names(root) == [(0, "a.jpg"), (0, "a.png"), (1, "a")]


def test_classes_may_be_given_in_another_order(root):
    assert names(root, classes=("bee", "ant")) == [(0, "a"), (1, "a")]
    assert names(root, classes=("bee", "cat", "ant"), allow_empty=True) == [(0, "a"), (2, "a")]


def grey_16(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16))


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED, 0, 0, 250])
    if transparent:
        image.putpixel((0, 0), 2)
        image.info["transparency"] = 2
    return image


def with_clear_corner(mode: str) -> Image.Image:
    image = Image.new("RGBA", (4, 4), (*RED, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    return image.convert(mode)


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encoded(with_clear_corner("RGBA")),
        encoded(with_clear_corner("RGBA"), "WEBP", lossless=True),
        encoded(with_clear_corner("RGBA"), "TIFF"),
        encoded(with_clear_corner("LA")),
        encoded(palette(True), transparency=2),
        encoded(palette(True), "GIF", transparency=2),
        encoded(Image.fromarray(np.eye(4, dtype=np.uint8) * 9), transparency=9),
        encoded(grey_16(np.eye(4) * 900), transparency=900),
        encoded(plain((0, 0, 9)), transparency=(0, 0, 9)),
    ],
    ids=["RGBA", "webp", "tiff", "LA", "palette", "gif", "grey with key", "16-bit grey with key", "RGB with key"],
)
def test_what_is_transparent_becomes_white(tmp_path, data):
    (tmp_path / "a.img").write_bytes(data)
    pixels = read_image(tmp_path / "a.img")
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels.shape == (4, 4, 3)
    assert (pixels[0, 1] < 255).any() or data == encoded(plain((0, 0, 9)), transparency=(0, 0, 9))


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    Image.new("RGBA", (1, 1), (0, 0, 0, 51)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[204, 204, 204]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(tmp_path, kind):
    (tmp_path / "a").write_bytes(encoded(grey_16(np.array([[0, 257, 32896, 65535]])), kind))
    assert read_image(tmp_path / "a")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_grey_of_the_other_byte_order_is_scaled(tmp_path):
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257, 65535))
    image.save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [1, 255]


def test_other_modes_are_converted(tmp_path):
    cmyk, bits = Image.new("CMYK", (2, 2), (0, 255, 255, 0)), Image.new("1", (2, 2), 1)
    for image, kind, expected in (
        (cmyk, "TIFF", (255, 0, 0)),
        (cmyk, "JPEG", (254, 0, 0)),
        (bits, "PNG", (255, 255, 255)),
        (Image.new("L", (2, 2), 7), "PNG", (7, 7, 7)),
        (palette(False), "PNG", RED),
    ):
        (tmp_path / "a").write_bytes(encoded(image, kind))
        assert np.abs(read_image(tmp_path / "a")[0, 0].astype(int) - expected).max() <= 2, (image.mode, kind)


def test_the_camera_s_orientation_is_applied(tmp_path):
    image = plain((0, 0, 0), (8, 4))
    image.paste((255, 255, 255), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to the right
    image.save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (8, 4, 3) and pixels[0, 0, 0] == 255 and pixels[7, 0, 0] == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, kind):
    frames = [plain((0, 0, 0)), plain((255, 255, 255))]
    (tmp_path / "a").write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert read_image(tmp_path / "a").max() < 10


def bomb(side: int) -> bytes:
    """A PNG of few bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"<html>", "not an image"),
        (encoded(plain(size=(64, 64)), "JPEG")[:400], "(?i)truncated"),
        (encoded(Image.effect_noise((64, 64), 50))[:-2000], "truncated|unrecognized data|broken"),
        (bomb(10_000), f"at most {MAX_PIXELS} pixels, got 10000 x 10000"),
        (bomb(60_000), "at most 89478485 pixels, got far more"),
        (encoded(Image.new("F", (2, 2), 0.5), "TIFF"), "got mode F"),
        (encoded(Image.fromarray(np.array([[70_000]], np.int32)), "TIFF"), "at most 16 bits, got values 70000"),
    ],
    ids=["empty", "html", "cut jpeg", "cut png", "bomb", "larger bomb", "floats", "32 bits"],
)
def test_a_file_that_cannot_be_read_is_named_with_how_many_there_are(root, data, message):
    (root / "bee" / "broken.png").write_bytes(data)
    (root / "bee" / "c.png").write_bytes(b"")
    with pytest.raises(InputError, match=message) as raised:
        load_pictures(root)
    text = str(raised.value)
    assert text.startswith(f"2 of 4 images below {root} cannot be read, the first: {root / 'bee' / 'broken.png'}: ")
    assert "\n" not in text and text.count("broken.png") == 1


def test_folders_that_are_no_image_folder_are_refused(root, tmp_path):
    with pytest.raises(InputError, match="expected a folder of images, got"):
        list_image_folder(root / "none")
    with pytest.raises(InputError, match=r"expected .*/<class>/<image>, found 1 images without a class folder"):
        list_image_folder(root / "ant")
    (root / "cat").mkdir()
    with pytest.raises(InputError, match=r"images in every class folder .*, found none in 'cat'") as raised:
        list_image_folder(root)
    assert "all later labels change" in raised.value.hint
    with pytest.raises(InputError, match=r"expected the class folders 'ant', 'cat' below .*, found also 'bee'"):
        list_image_folder(root, classes=("ant", "cat"))
    for name in ("ant", "bee"):
        (root / name / "a.png").unlink()
    with pytest.raises(InputError, match="found no image in 3 class folders"):
        list_image_folder(root)
    (root / "ant" / "line\nbreak").mkdir()
    (root / "b\nc").mkdir()
    with pytest.raises(InputError, match="printable names"):
        list_image_folder(root)


def test_sizes_that_differ_are_named_with_their_files(root):
    plain(size=(4, 6)).save(root / "bee" / "b.png")
    with pytest.raises(InputError, match=r"one size, got 4 x 4 in .*ant/a.png and 4 x 6 in .*bee/b.png"):
        load_pictures(root)
