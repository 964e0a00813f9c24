"""The wheel and the editable install hold all four packages and every data file."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from support.real_cluster import bare
from support.sources import FOLDERS

ROOT = Path(__file__).parents[2]
DATA = tuple(f"tandem/zoo/{name}.safetensors" for name in ("vqvae", "drafter", "refiner", "d3", "classifier"))
PROGRAM = """
import code, pdb, sysconfig, pathlib
assert pathlib.Path(code.__file__).parent == pathlib.Path(sysconfig.get_paths()["stdlib"]), code.__file__
import tandem_cluster.placement, tandem_jobs.cli, tandem_workers.dataset.card, tandem
from tandem.zoo import CARD, ROLES, weights_path
assert all(weights_path(role).stat().st_size > 1000 for role in ROLES)
assert CARD.is_file()
assert (pathlib.Path(tandem_workers.dataset.card.__file__).parent / "card_template.md").is_file()
print(tandem.__version__, pathlib.Path(tandem_jobs.cli.__file__).parent)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, so that builds leave nothing behind in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "tandem"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, files.decode().split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A new environment that sees this one's packages, but not this project."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    shared = tmp_path / "shared"
    shared.mkdir()
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "tandem" not in package.name.lower():
            (shared / package.name).symlink_to(package)
    Path(site, "shared.pth").write_text(f"{shared}\n")
    return python


def pip(python: Path, *args: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *args],
        check=True,
        capture_output=True,
    )


def run_elsewhere(python: Path, tmp_path: Path) -> str:
    ran = subprocess.run([python, "-c", PROGRAM], cwd=tmp_path, env=bare(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.slow
def test_wheel(source: Path, environment: Path, tmp_path: Path):
    command = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path / "dist"), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        *DATA,
        "tandem_workers/dataset/card_template.md",
        "tandem_workers/dataset/export_template.md",
        "tandem_workers/endpoint/page/index.html",
        "tandem_cluster/profiles/paper-l20.json",
        "tandem/zoo/README.md",
        "tandem/imagenet_1k.csv",
        "tandem/imagenet_1k.md",
    } <= set(names)
    assert {f"{package}/py.typed" for package in FOLDERS} <= set(names)
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(FOLDERS)
    pip(environment, "install", "--no-deps", "--no-index", str(wheel))
    version, place = run_elsewhere(environment, tmp_path).split()
    assert wheel.name.split("-")[1] == version
    assert place.startswith(str(tmp_path / "venv"))
    assert (environment.parent / "tandem").is_file()


@pytest.mark.slow
def test_editable_install(source: Path, environment: Path, tmp_path: Path):
    pip(environment, "install", "--no-deps", "--no-index", "--no-build-isolation", "-e", str(source))
    assert run_elsewhere(environment, tmp_path).split()[1] == str(source / "jobs" / "tandem_jobs")
