"""The way of one label from the command to the store goes through few files, and hardly ever back up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MOST_FILES, MOST_CLIMBS = 22, 3


def test_a_label_enters_few_files_on_its_way_to_the_store_and_hardly_climbs():
    program = [sys.executable, str(ROOT / "tests/support/label_way.py")]
    ran = subprocess.run(program, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert len(found["files"]) <= MOST_FILES, found["files"]
    assert len(found["climbs"]) <= MOST_CLIMBS, found["climbs"]
    assert found["files"][0].endswith("cli") and found["files"][-1].endswith("store"), found["files"]
