"""Write a new version into the project: `make release VERSION=0.2.0`, which renders the example of cluster/ as well.

The one place of the version is code/tandem/version.py. The newest section of CHANGELOG.md gets the version and the day.
"""

import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADING = re.compile(r"^## \S+ - unreleased$", re.M)


def release(root: Path, version: str, day: datetime.date) -> None:
    """Raises SystemExit, with nothing written, for a version that is none or a changelog without news."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"error: expected VERSION=MAJOR.MINOR.PATCH, got {version!r}")
    changelog = root / "CHANGELOG.md"
    text = changelog.read_text()
    if len(HEADING.findall(text)) != 1:
        sys.exit(f"error: CHANGELOG.md: expected one '## ... - unreleased', got {len(HEADING.findall(text))}")
    changelog.write_text(HEADING.sub(f"## {version} - {day}", text))
    place = root / "code" / "tandem" / "version.py"
    place.write_text(re.sub(r'^__version__ = ".*"$', f'__version__ = "{version}"', place.read_text(), flags=re.M))


if __name__ == "__main__":
    release(ROOT, sys.argv[1], datetime.date.today())
    print(f"version {sys.argv[1]}: look at `git diff`, commit, then git tag v{sys.argv[1]}")
