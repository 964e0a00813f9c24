"""`make release VERSION=...`: one command writes all places of the version."""

import datetime
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DAY = datetime.date(2027, 1, 31)


@pytest.fixture
def checkout(tmp_path):
    for name in ("CHANGELOG.md", "code/tandem/version.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    text = "# Changelog\n\n## 0.2.0 - unreleased\n\n- New.\n\n## 0.1.0 - 2026-12-01\n"
    (tmp_path / "CHANGELOG.md").write_text(text)
    return tmp_path


def release(checkout: Path, version: str) -> None:
    runpy.run_path(str(ROOT / ".ci" / "release.py"))["release"](checkout, version, DAY)


def test_version_and_changelog_are_written(checkout):
    release(checkout, "0.2.0")
    program = "import version; print(version.__version__)"
    folder = checkout / "code" / "tandem"
    assert subprocess.check_output([sys.executable, "-c", program], cwd=folder, text=True) == "0.2.0\n"
    assert "## 0.2.0 - 2027-01-31\n\n- New." in (checkout / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("version", "heading", "message"),
    [
        ("0.2", "## 0.2.0 - unreleased", "expected VERSION=MAJOR.MINOR.PATCH, got '0.2'"),
        ("0.2.0", "## 0.2.0 - 2027-01-01", "expected one '## ... - unreleased', got 0"),
    ],
)
def test_a_wrong_version_or_no_news_writes_nothing(checkout, version, heading, message):
    (checkout / "CHANGELOG.md").write_text(heading + "\n")
    with pytest.raises(SystemExit, match=message.replace(".", r"\.")):
        release(checkout, version)
    assert (checkout / "CHANGELOG.md").read_text() == heading + "\n"
    assert (checkout / "code/tandem/version.py").read_text() == (ROOT / "code/tandem/version.py").read_text()


def test_the_version_stands_in_one_place():
    """What depends on it is rendered (the example of cluster/) or names no version."""
    files = subprocess.check_output(["git", "grep", "-lF", "tandem:0.1.0"], cwd=ROOT, text=True).split()
    rendered = {f"cluster/kuberay/ray{name}.yaml" for name in ("cluster", "job", "service")} | {"cluster/launcher.yaml"}
    assert (
        rendered
        <= set(files)
        <= rendered | {"tests/unit/cluster/test_cluster_platform.py", "tests/unit/project/test_release.py"}
    )
