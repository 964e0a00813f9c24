"""The least versions that pyproject.toml declares, one a line, for the run of the unit tests with them.

torch and Ray are left out. 2.13 is the only torch for CPUs to be had where this runs, and the tests run with it; 2.11
has run the library on GPUs. Ray's range is one release, which every run has.
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
