"""Where the code of this checkout is, for processes that tests start."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "tandem": ROOT / "code" / "tandem",
    **{f"tandem_{name}": ROOT / name / f"tandem_{name}" for name in ("workers", "jobs", "cluster")},
}
# Our packages, and the helpers of tests
PYTHONPATH = os.pathsep.join(str(folder) for folder in (*(f.parent for f in FOLDERS.values()), ROOT / "tests"))
