"""Write constraints.txt from a fresh environment: the newest releases that pyproject.toml allows, torch as pinned.

Run it with `make lock`. Where a release needs a newer Python than the project does, its pin holds from there on.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCH = "torch==2.13.0"
HEADER = f"# Made by `make lock` on CPython {sys.version_info[0]}.{sys.version_info[1]}: what make and CI install.\n"


def pin(package: dict) -> str:
    meta = package["metadata"]
    newer = re.search(r">=\s*3\.(\d+)", meta.get("requires_python", ""))
    marker = f' ; python_version >= "3.{newer[1]}"' if newer and int(newer[1]) > 10 else ""
    return f"{meta['name']}=={meta['version'].split('+')[0]}{marker}"


with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = f"{folder}/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", TORCH, f"{ROOT}[test,dev]"], check=True)
    report = json.loads(subprocess.check_output([python, "-m", "pip", "inspect", "--local"]))
skipped = {"pip", "setuptools", "tandem-code"}
pins = sorted((pin(p) for p in report["installed"] if p["metadata"]["name"] not in skipped), key=str.lower)
(ROOT / "constraints.txt").write_text(HEADER + "\n".join(pins) + "\n")
print(f"constraints.txt: {len(pins)} packages")
