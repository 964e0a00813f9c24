"""`tandem pictures`: labelled pictures to train on, from the npm package emoji-datasource-google.

The artwork is Google's Noto emoji (Apache-2.0), packed by Cal Henderson (MIT) as 64 x 64 PNG files with a table of
names and categories. Written as an ImageFolder: OUT/train/<class>/<picture>.png and OUT/heldout/...
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from jobs.picture_classes import CLASSES, PictureClass
from jobs.spec import Spec
from tandem.errors import InputError, OutputError
from tandem.weights import file_sha256

PACKAGE = "emoji-datasource-google@16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
SIZE = 64
HELDOUT_SHARE = 0.1
MIN_HELDOUT = 4
# Mean absolute difference (0 to 255) below which two pictures are one and the same for hold-out
ALIKE = 2.0
GENDERED = re.compile(r"(?<![a-z])(woman|man|female|male|person|adult|girl|boy|child)(?![a-z])")


class PicturesSpec(Spec):
    """Make the training pictures of the embedded model."""

    out: Path = Field(description="folder to make, with train/<class>/*.png and heldout/<class>/*.png")
    package: Path | None = Field(None, description=f"{PACKAGE} as a .tgz already here; else fetched by npm pack")
    overwrite: bool = Field(False, description="replace the folder if it exists")


@dataclass(frozen=True)
class Picture:
    """One file of the package: a picture, or a variant of it in another skin tone."""

    label: int
    name: str
    group: str
    pixels: np.ndarray  # uint8 [64, 64, 3]


def run(spec: PicturesSpec, classes: Sequence[PictureClass] = CLASSES, sha256: str = SHA256) -> dict[str, Any]:
    """Write the folder and return what OUT/pictures.json says."""
    if spec.out.exists() and not spec.overwrite:
        raise OutputError(f"{spec.out} exists", "choose another --out, or add --overwrite")
    with tempfile.TemporaryDirectory() as folder:
        archive = spec.package or fetch_package(Path(folder))
        if (found := file_sha256(archive)) != sha256:
            raise InputError(f"{archive}: expected {PACKAGE} with sha256 {sha256[:16]}…, got {found[:16]}…")
        pictures = read_package(archive, classes)
    heldout = choose_heldout(pictures, len(classes))
    about = describe(pictures, heldout, classes, sha256)
    staging = spec.out.with_name(f".{spec.out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for picture in pictures:
            split = "heldout" if picture.group in heldout else "train"
            path = staging / split / classes[picture.label].name / f"{picture.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.pixels).save(path)
        (staging / "pictures.json").write_text(json.dumps(about, indent=1) + "\n")
        if spec.out.exists():
            shutil.rmtree(spec.out)
        staging.rename(spec.out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return about


def fetch_package(folder: Path) -> Path:
    """Download the package with npm; it need not be installed in the project."""
    try:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise InputError(
            f"npm is needed to fetch {PACKAGE}", "install Node.js, or give the .tgz with --package"
        ) from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"npm pack {PACKAGE} failed: {error.stderr.strip()[-300:]}") from error
    return next(folder.glob("*.tgz"))


def read_package(archive: Path, classes: Sequence[PictureClass]) -> list[Picture]:
    """All pictures of the classes with their variants, on white, in the order of class and name."""
    with tarfile.open(archive) as tar:
        table = json.load(extract(tar, "package/emoji.json"))
        label_of = {sub: label for label, c in enumerate(classes) for sub in c.subcategories}
        found = []
        for emoji in table:
            label = label_of.get(emoji["subcategory"])
            if label is None or not emoji["has_img_google"] or emoji["short_name"] in classes[label].exclude:
                continue
            name = emoji["short_name"].replace("/", "-")
            variants = emoji.get("skin_variations", {}).values()
            files = [(name, emoji["image"])] + [
                (f"{name}~{v['unified'].lower()}", v["image"]) for v in variants if v["has_img_google"]
            ]
            for stem, image in files:
                data = extract(tar, f"package/img/google/64/{image}")
                found.append(Picture(label, stem, without_gender(label, emoji), on_white(data)))
    merged = merge_alike(found)
    return sorted(merged, key=lambda p: (p.label, p.name))


def extract(tar: tarfile.TarFile, name: str) -> io.BytesIO:
    try:
        file = tar.extractfile(name)
    except KeyError as error:
        raise InputError(f"{tar.name}: expected a file {name} in the package") from error
    assert file is not None
    return io.BytesIO(file.read())


def without_gender(label: int, emoji: dict[str, Any]) -> str:
    """Name of the picture whatever the gender: one of a "man", "woman", "person" trio stands for all."""
    text = GENDERED.sub("", emoji["name"].lower())
    return f"{label}/" + re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def on_white(data: io.BytesIO) -> np.ndarray:
    with Image.open(data) as image:
        rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, "white")
    ground.alpha_composite(rgba)
    return np.asarray(ground.convert("RGB").resize((SIZE, SIZE)) if rgba.size != (SIZE, SIZE) else ground.convert("RGB"))


def merge_alike(pictures: list[Picture]) -> list[Picture]:
    """Give one group to pictures of a class that look the same, mirrored or not (flags, left and right hands)."""
    parent = {p.group: p.group for p in pictures}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for label in {p.label for p in pictures}:
        plain = [p for p in pictures if p.label == label and "~" not in p.name]
        small = np.stack([p.pixels[::2, ::2].astype(np.int16) for p in plain])
        for i, picture in enumerate(plain):
            for view in (small[i], small[i][:, ::-1]):
                distance = np.abs(small[i + 1 :] - view).mean(axis=(1, 2, 3))
                for j in np.flatnonzero(distance < ALIKE):
                    parent[root(plain[i + 1 + j].group)] = root(picture.group)
    return [Picture(p.label, p.name, root(p.group), p.pixels) for p in pictures]


def choose_heldout(pictures: list[Picture], num_classes: int) -> set[str]:
    """Groups held out whole: those with the smallest hash, a tenth of each class and at least four."""
    heldout: set[str] = set()
    for label in range(num_classes):
        groups = sorted({p.group for p in pictures if p.label == label}, key=digest)
        heldout |= set(groups[: max(MIN_HELDOUT, round(HELDOUT_SHARE * len(groups)))])
    return heldout


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def describe(
    pictures: list[Picture], heldout: set[str], classes: Sequence[PictureClass], sha256: str
) -> dict[str, Any]:
    counts = {}
    for label, c in enumerate(classes):
        mine = [p for p in pictures if p.label == label]
        counts[c.name] = {
            "distinct_pictures": len({p.group for p in mine}),
            "distinct_heldout": len({p.group for p in mine} & heldout),
            "train_files": sum(p.group not in heldout for p in mine),
            "heldout_files": sum(p.group in heldout for p in mine),
        }
    return {
        "package": PACKAGE,
        "sha256": sha256,
        "licences": {"package": "MIT", "artwork (Noto emoji)": "Apache-2.0"},
        "size": SIZE,
        "classes": [c.name for c in classes],
        "counts": counts,
    }
