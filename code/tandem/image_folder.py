"""A folder of labelled images: which files are in it, and their pixels.

The layout is that of torchvision's ImageFolder, ROOT/<class>/.../<image>, and so are the rules: classes are the sorted
folder names, files are found in nested folders too, and a class without images is an error, as leaving it out would
shift all later labels. All code that reads users' images uses this module.

Hidden and system files are left out, and named in `notes`. Pixels are uint8 [H, W, 3], RGB: transparency on white,
16-bit grey scaled to 8, CMYK converted, EXIF orientation applied, of an animation the first frame. Colour profiles
are not applied.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tandem.errors import InputError, PictureSizeError
from tandem.user_files import cause_of, shown

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"])
SYSTEM = frozenset(("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"))
FEATURES_SUFFIX = ".features"  # a folder of feature files, which stands beside the pictures that they are of
MAX_PIXELS = 89_478_485  # of one image, where Pillow warns: a file of a few kB can unpack to more than the memory
MAX_NAMED = 5


@dataclass(frozen=True)
class ImageFile:
    """One image: `name` is its path below the class folder, without the suffix if that is unique."""

    path: Path
    label: int
    name: str


@dataclass(frozen=True)
class ImageFolder:
    """Files sorted by class and path. `notes` are sentences on what was left out."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    notes: tuple[str, ...]

    def read_all(self) -> Iterator[tuple[ImageFile, NDArray[np.uint8]]]:
        """Every file with its pixels, in order. Unreadable files raise one InputError, at the end."""
        broken: list[str] = []
        for file in self.files:
            try:
                pixels = read_image(file.path)
            except InputError as error:
                broken.append(str(error))
            else:
                yield file, pixels
        if broken:
            raise InputError(
                f"{len(broken)} of {len(self.files)} images below {self.root} cannot be read, the first: {broken[0]}",
                "remove or replace them",
            )


def list_image_folder(root: Path, classes: Sequence[str] | None = None, allow_empty: bool = False) -> ImageFolder:
    """The images of ROOT/<class>/. Classes are the given names in order, or the sorted folder names.

    Raises InputError when the folder is missing or holds no image, when a class has none (unless `allow_empty`), or
    when a folder is none of the given classes.
    """
    if not os.path.isdir(root):
        hint = "tandem pictures --out DIR makes one to try with"
        raise InputError(f"expected a folder of images, got {shown(root)}", hint)
    entries = _entries(root)
    folders = [entry for entry in entries if entry.is_dir() and not is_hidden(entry)]
    found = tuple(folder.name for folder in folders)
    loose = [entry for entry in entries if entry.is_file() and is_image(entry)]
    if not folders:
        got = f"{len(loose)} images without a class folder" if loose else "no class folder"
        raise InputError(f"expected {root}/<class>/<image>, found {got}")
    names = tuple(classes) if classes is not None else found
    if wrong := [name for name in found if not name.isprintable()]:
        raise InputError(f"expected class folders with printable names below {root}, got {wrong[0]!r}")
    if unknown := [name for name in found if name not in names]:
        raise InputError(f"expected the class folders {_some(names)} below {root}, found also {_some(unknown)}")
    hidden = [entry for entry in entries if is_hidden(entry)]
    others: list[Path] = []
    files: list[ImageFile] = []
    for label, name in enumerate(names):
        images: list[Path] = []
        for path in _walk(root / name, hidden):
            (images if is_image(path) else others).append(path)
        files += _named(images, root / name, label)
    if not files:
        raise InputError(f"expected {root}/<class>/<image>, found no image in {len(found)} class folders")
    per_class = Counter(file.label for file in files)
    empty = [name for label, name in enumerate(names) if not per_class[label]]
    if empty and not allow_empty:
        raise InputError(
            f"expected images in every class folder below {root}, found none in {_some(empty)}",
            "add images, or remove the folder and train anew: all later labels change",
        )
    left_out = (("hidden or system entries", hidden), ("files that are no images", others), ("loose images", loose))
    notes = [f"{root}: left out {len(paths)} {what}, such as {paths[0]}" for what, paths in left_out if paths]
    return ImageFolder(root, names, tuple(files), tuple(notes))


def read_image(path: Path) -> NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] of an image file. InputError, naming the file, if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {shown(cause_of(error))}") from None
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] of an image file's bytes. InputError, with the `name` given, if it cannot be read."""
    with opened_image(data, name) as image:
        return np.asarray(on_white(ImageOps.exif_transpose(image)))


@contextmanager
def opened_image(
    data: bytes, name: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Context manager: the image of a file's bytes, loaded. InputErrors within it name the file, too.

    PictureSizeError for more than `max_pixels`, before any is decoded (but of ICO, which Pillow decodes to open it).
    `formats`: Pillow's names of those that are read; None: all.
    """
    try:
        if not data:
            raise InputError(f"{name}: the file is empty")
        # Pillow warns of damaged metadata, of which only the orientation is used, and of many pixels
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=formats) as image:
            check_pixels(image.size, name, max_pixels)
            image.load()
            yield image
    except InputError as error:
        raise type(error)(str(error) if name in str(error) else f"{name}: {error}") from None
    except Image.DecompressionBombError:
        raise PictureSizeError(f"{name}: expected at most {max_pixels} pixels, got far more") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{name}: not an image, despite its name") from None
    # Pillow's decoders raise these for damaged files
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, RuntimeError, struct.error) as error:
        raise InputError(f"{name}: {shown(cause_of(error)) or type(error).__name__}") from None


def check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """PictureSizeError for (width, height) of more than `max_pixels`."""
    if size[0] * size[1] > max_pixels:
        raise PictureSizeError(f"{name}: expected at most {max_pixels} pixels, got {size[0]} x {size[1]}")


def on_white(image: Image.Image) -> Image.Image:
    """The image in mode RGB, 8 bits a channel, white where it is transparent. InputError for other data."""
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode in ("F", "LAB", "HSV"):
        raise InputError(f"expected grey, RGB, CMYK or palette pixels, got mode {image.mode}")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "white")
        ground.alpha_composite(rgba)
        image = ground
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, which Pillow's own conversion clips at 255. A transparent value becomes white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise InputError(f"expected grey of at most 16 bits, got values {values.min()} to {values.max()}")
    grey = ((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _named(paths: list[Path], folder: Path, label: int) -> list[ImageFile]:
    """Files of one class by path. Two that differ only in the suffix keep it, as they may be different pictures."""
    stems = Counter(path.with_suffix("") for path in paths)
    names = [path.with_suffix("") if stems[path.with_suffix("")] == 1 else path for path in paths]
    return [ImageFile(p, label, n.relative_to(folder).as_posix()) for p, n in zip(paths, names, strict=True)]


def _walk(folder: Path, hidden: list[Path]) -> Iterator[Path]:
    """Files below a class folder in order, those of nested folders last; adds skipped ones to `hidden`."""
    entries = _entries(folder) if folder.is_dir() else []
    hidden += [entry for entry in entries if is_hidden(entry)]
    seen = [entry for entry in entries if not is_hidden(entry)]
    yield from (entry for entry in seen if not entry.is_dir())
    for entry in seen:
        if entry.is_dir() and not entry.is_symlink():  # a link may form a loop
            yield from _walk(entry, hidden)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error


def is_hidden(path: PurePath) -> bool:
    """Whether a file or folder of this name is no part of the pictures."""
    return path.name.startswith(".") or path.name in SYSTEM or path.suffix == FEATURES_SUFFIX


def is_image(path: PurePath) -> bool:
    """Whether a file is an image by its name."""
    return not is_hidden(path) and path.suffix.lower() in SUFFIXES


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(repr, names[:MAX_NAMED])) + more
