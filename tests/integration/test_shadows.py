"""A user's files with the names of our packages are neither imported nor run, not even on workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.sources import FOLDERS, PYTHONPATH

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json
import ray
from tandem_cluster import PACKAGES
from tandem_cluster.session import check_code, open_session
from tandem.errors import PlacementError

def whence():
    import importlib
    return {name: importlib.import_module(name).__file__ for name in PACKAGES}

with open_session(None, 0, 1):
    found = ray.get(ray.remote(whence).remote())
    check_code()
    try:
        check_code(("tandem_jobs", "not_there"))
    except PlacementError as error:
        found["error"], found["hint"] = str(error), error.hint
import os
print(json.dumps(found | {"cwd": os.getcwd()}))
"""


def test_modules_in_the_current_folder_are_not_taken_for_ours(tmp_path):
    here, there = tmp_path / "here", tmp_path / "program"
    here.mkdir()
    there.mkdir()
    for name in ("tandem_jobs.py", "tandem_cluster.py", "tandem.py"):
        (here / name).write_text("open('executed', 'w')\nraise RuntimeError('not ours')\n")
    (here / "tandem_workers").mkdir()
    (here / "tandem_workers" / "__init__.py").write_text("open('executed', 'w')\n")
    (there / "program.py").write_text(PROGRAM)
    env = os.environ | {"PYTHONPATH": PYTHONPATH, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    env.pop("RAY_ADDRESS", None)
    ended = subprocess.run([sys.executable, there / "program.py"], cwd=here, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    for name in FOLDERS:
        assert Path(found[name]).is_relative_to(ROOT), found
    assert not (here / "executed").exists()
    assert found["cwd"] == str(here)
    assert found["error"] == "expected the code of tandem on the nodes of the cluster, got none (not_there)"
    assert found["hint"] == "tandem submit --address http://HOST:8265 -- COMMAND sends it along"
