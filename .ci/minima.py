"""The least versions that pyproject.toml declares, one a line, for the run of the unit tests with them.

torch and Ray are left out. torch is declared from 2.6 on, as `weights_only` is not safe before; this run has 2.13, the
one at hand, and 2.11 has run on an H100. Ray's range is one release, which every run has.
"""

import re
import tomllib
from pathlib import Path

SHARED = {"torch", "ray"}

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, least = re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement).groups()
    if name not in SHARED:
        print(f"{name}=={least}")
