"""Training pictures: a small package of our own goes in, an ImageFolder comes out. No network, no npm."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tandem.errors import InputError, OutputError
from tandem.hashing import file_sha256
from tandem_jobs.cli import main
from tandem_jobs.train.emoji import HELDOUT_SHARE, MIN_HELDOUT, PACKAGE, VERSION, PicturesSpec, read_package, run
from tandem_jobs.train.picture_classes import CLASSES, PictureClass

SHAPES = PictureClass("shape", frozenset({"geometric"}), frozenset({"unwanted"}))
PEOPLE = PictureClass("person", frozenset({"person", "person-role"}))
TWO_CLASSES = (SHAPES, PEOPLE)


def artwork(seed: int, transparent: bool = True) -> np.ndarray:
    """Blocks of random colours, the upper left one transparent black: uint8 [64, 64, 4], RGBA."""
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    rgba = np.dstack([pixels, np.full((64, 64), 255, np.uint8)])
    if transparent:
        rgba[:8, :8] = 0
    return rgba


class Package:
    """Builds a package file of the layout that npm delivers."""

    def __init__(self) -> None:
        self.table: list[dict] = []
        self.images: dict[str, bytes] = {}

    def add(
        self,
        short_name: str,
        pixels: np.ndarray,
        subcategory: str = "geometric",
        name: str = "",
        unified: str = "",
    ) -> dict:
        emoji = {
            "name": name or short_name.upper(),
            "unified": unified or f"2B{len(self.table):02X}",
            "short_name": short_name,
            "subcategory": subcategory,
            "image": self.image(pixels),
            "has_img_google": True,
        }
        self.table.append(emoji)
        return emoji

    def add_tones(self, emoji: dict, seeds: range) -> None:
        emoji["skin_variations"] = {
            f"1F3F{tone}": {
                "unified": f"{emoji['unified']}-1F3F{tone}",
                "image": self.image(artwork(seed)),
                "has_img_google": True,
            }
            for tone, seed in zip("BCDEF", seeds, strict=True)
        }

    def image(self, pixels: np.ndarray) -> str:
        name, data = f"{len(self.images)}.png", io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        self.images[name] = data.getvalue()
        return name

    def write(self, path: Path) -> Path:
        files = {f"package/img/google/64/{name}": data for name, data in self.images.items()}
        files["package/emoji.json"] = json.dumps(self.table).encode()
        with tarfile.open(path, "w:gz") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return path


@pytest.fixture
def package() -> Package:
    """50 shapes, and 10 people who come in three genders and five skin tones."""
    made = Package()
    for i in range(50):
        made.add(f"shape{i}", artwork(i))
    for i in range(10):
        for j, (who, code) in enumerate({"PERSON": "1F9D1", "MAN": "1F468", "WOMAN": "1F469"}.items()):
            seed = 1000 + 100 * i + 10 * j
            emoji = made.add(
                f"{who.lower()}-{i}", artwork(seed), "person-role", f"{who} ROLE{i}", f"{code}-200D-1F33{i}"
            )
            made.add_tones(emoji, range(seed + 1, seed + 6))
    return made


def make(package: Package, folder: Path, classes=TWO_CLASSES, **options) -> tuple[Path, dict]:
    archive = package.write(folder / "package.tgz")
    out = folder / "pictures"
    return out, run(PicturesSpec(out=out, package=archive, **options), classes, file_sha256(archive))


def names(out: Path, split: str, name: str) -> set[str]:
    return {path.stem for path in (out / split / name).iterdir()}


def groups_of(package: Package, folder: Path, classes=TWO_CLASSES) -> dict[str, str]:
    return {p.name: p.group for p in read_package(package.write(folder / "package.tgz"), classes)}


def test_every_picture_is_there_once_with_its_variants(package, tmp_path):
    out, about = make(package, tmp_path)
    shapes = [names(out, split, "shape") for split in ("train", "heldout")]
    people = [names(out, split, "person") for split in ("train", "heldout")]
    assert not shapes[0] & shapes[1]
    assert shapes[0] | shapes[1] == {f"shape{i}" for i in range(50)}
    assert len(people[0] | people[1]) == len(people[0]) + len(people[1]) == 10 * 3 * 6
    assert "man-3~1f468-200d-1f333-1f3fb" in people[0] | people[1]
    assert json.loads((out / "pictures.json").read_text()) == about
    assert (about["package"], about["version"]) == (PACKAGE, VERSION)
    assert about["classes"] == ["shape", "person"]
    assert about["counts"]["person"] == {
        "distinct_pictures": 10,
        "distinct_heldout": MIN_HELDOUT,
        "train_files": len(people[0]),
        "heldout_files": len(people[1]),
    }


def test_transparent_becomes_white_and_half_transparent_mixes(package, tmp_path):
    pixels = artwork(7)
    pixels[8:16, 8:16] = (200, 100, 0, 128)
    package.add("mixed", pixels)
    out, _ = make(package, tmp_path)
    (path,) = out.glob("*/shape/mixed.png")
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (64, 64))
        found = np.asarray(image)
    assert (found[:8, :8] == 255).all()
    np.testing.assert_allclose(found[8, 8], [227, 177, 127], atol=1)
    np.testing.assert_array_equal(found[16:, 16:], pixels[16:, 16:, :3])


def test_heldout_is_a_tenth_or_four_and_whole_pictures(package, tmp_path):
    out, about = make(package, tmp_path)
    assert about["counts"]["shape"]["distinct_heldout"] == round(HELDOUT_SHARE * 50) == 5
    assert about["counts"]["person"]["distinct_heldout"] == 4
    sides = [{name.split("~")[0].split("-")[1] for name in names(out, s, "person")} for s in ("train", "heldout")]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 4


def test_the_same_package_gives_the_same_split_and_new_pictures_move_few(package, tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    heldout = names(make(package, first)[0], "heldout", "shape")
    package.table.reverse()
    assert names(make(package, second)[0], "heldout", "shape") == heldout
    package.add("newcomer", artwork(99))
    assert len(heldout - names(make(package, third)[0], "heldout", "shape")) <= 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("OLDER MAN", "1F474"), ("OLDER WOMAN", "1F475")),
        (("MALE PILOT", "1F468-200D-2708-FE0F"), ("FEMALE PILOT", "1F469-200D-2708-FE0F")),
        (("GUARDSMAN", "1F482"), ("WOMAN GUARD", "1F482-200D-2640-FE0F")),
        (("BRIDE WITH VEIL", "1F470"), ("MAN WITH VEIL", "1F470-200D-2642-FE0F")),
    ],
)
def test_genders_of_one_picture_are_one_group(package, tmp_path, first, second):
    for i, (name, unified) in enumerate((first, second)):
        package.add(f"gendered{i}", artwork(50 + i), "person", name, unified)
    groups = groups_of(package, tmp_path)
    assert groups["gendered0"] == groups["gendered1"]
    assert list(groups.values()).count(groups["gendered0"]) == 2


@pytest.mark.parametrize("view", [np.s_[:, :], np.s_[:, ::-1]], ids=["copy", "mirrored"])
def test_pictures_that_look_the_same_are_one_group(package, tmp_path, view):
    drawing = artwork(60, transparent=False)
    # One pixel wide, so that a mirror off by one pixel does not match
    drawing[:, ::2, :3] //= 2
    noisy = drawing[view].copy()
    noisy[..., :3] ^= 1
    package.add("left", drawing)
    package.add("right", noisy)
    groups = groups_of(package, tmp_path)
    assert groups["left"] == groups["right"]
    assert groups["left"] != groups["shape0"]


def test_pictures_of_two_classes_are_never_one_group(package, tmp_path):
    package.add("twin", artwork(61), "geometric", "TWIN", "1F333")
    package.add("other-twin", artwork(61), "person", "TWIN", "1F333")
    groups = groups_of(package, tmp_path)
    assert groups["twin"] != groups["other-twin"]


def test_excluded_pictures_and_those_without_artwork_are_left_out(package, tmp_path):
    package.add("unwanted", artwork(62))
    package.add("undrawn", artwork(63))["has_img_google"] = False
    package.add("elsewhere", artwork(64), "arrow")
    assert not groups_of(package, tmp_path).keys() & {"unwanted", "undrawn", "elsewhere"}


def test_refuses_a_folder_that_exists(package, tmp_path):
    out, _ = make(package, tmp_path)
    with pytest.raises(OutputError, match="exists") as caught:
        make(package, tmp_path)
    assert "--overwrite" in caught.value.hint
    (out / "train/shape/stale.png").touch()
    make(package, tmp_path, overwrite=True)
    assert not (out / "train/shape/stale.png").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"package.tgz", "pictures"}


def test_overwrite_spares_a_folder_of_other_things(package, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"no pictures\.json"):
        make(package, tmp_path, overwrite=True)
    assert (tmp_path / "pictures/thesis.txt").read_text() == "years of work"


def test_another_package_is_refused(package, tmp_path):
    archive = package.write(tmp_path / "package.tgz")
    with pytest.raises(InputError, match=f"expected {PACKAGE}@{VERSION} with sha256 fb5fd131b362aab7…, got "):
        run(PicturesSpec(out=tmp_path / "pictures", package=archive))
    assert not (tmp_path / "pictures").exists()


def test_a_missing_package_file_is_named(tmp_path, capsys):
    missing = tmp_path / "none.tgz"
    assert main(["pictures", "--out", str(tmp_path / "out"), "--package", str(missing)]) == 2
    assert f"error: --package: expected a .tgz file, found none at {missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.images.pop("3.png"), r"expected a file package/img/google/64/3\.png"),
        (lambda p: p.add("large", artwork(1)[:32]), "expected 64 x 64 pixels, got 64 x 32"),
        (
            lambda p: p.table.__delitem__(slice(4, 50)),
            "class shape: expected over 4 distinct pictures, got 4",
        ),
    ],
    ids=["image missing", "wrong size", "too few"],
)
def test_a_faulty_package_leaves_nothing_behind(package, tmp_path, damage, message):
    damage(package)
    with pytest.raises(InputError, match=message):
        make(package, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["package.tgz"]


def test_a_failed_write_leaves_the_former_pictures_whole(package, tmp_path, monkeypatch):
    out, _ = make(package, tmp_path)
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    save, saved = Image.Image.save, []

    def full_disk(image, path, *args):
        if len(saved) == 20:
            raise OSError(28, "No space left on device")
        saved.append(path)
        save(image, path, *args)

    archive = tmp_path / "package.tgz"
    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        run(PicturesSpec(out=out, package=archive, overwrite=True), TWO_CLASSES, file_sha256(archive))
    assert len(saved) == 20
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} == {"package.tgz", "pictures"}


def test_without_npm_the_hint_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm is needed") as caught:
        run(PicturesSpec(out=tmp_path / "pictures"))
    assert "--package" in caught.value.hint


def test_npm_fetches_the_pinned_version_and_its_complaint_is_shown(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\necho "npm ERR! no route to host for $*" >&2\nexit 1\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InputError, match=f"no route to host for pack --silent {PACKAGE}@{VERSION}"):
        run(PicturesSpec(out=tmp_path / "pictures"))


def test_module_entry_is_the_command(tmp_path):
    command = [sys.executable, "-m", "tandem_jobs", "pictures", "--out", str(tmp_path), "--package", "none.tgz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: {tmp_path} exists" in done.stderr


def test_the_classes_are_distinct():
    assert len({c.name for c in CLASSES}) == len(CLASSES) >= 10
    subcategories = [subcategory for c in CLASSES for subcategory in c.subcategories]
    assert len(subcategories) == len(set(subcategories))
