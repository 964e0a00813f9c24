"""Versions of Tandem and its libraries, for images, `job.json` and `tandem --version`."""

from __future__ import annotations

import importlib.metadata
import platform

import tandem


def software() -> str:
    """Name and version, as in every image's provenance."""
    return f"tandem {tandem.__version__}"


def versions() -> dict[str, str]:
    names = ("torch", "ray", "numpy", "pillow", "pyarrow")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"software": software(), "python": platform.python_version(), **found}
