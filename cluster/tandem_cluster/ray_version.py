"""The versions of Ray that the tests pass with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from tandem.errors import InputError

MINOR = "2.60"  # as pyproject.toml has it: the pipeline uses parts of Ray Data that change from minor to minor


def check_ray() -> None:
    """Raise InputError for a Ray of another minor version. One that no installer has recorded passes."""
    try:
        found = version("ray")
    except PackageNotFoundError:
        return
    if found.split(".")[:2] != MINOR.split("."):
        after = f"{MINOR.split('.')[0]}.{int(MINOR.split('.')[1]) + 1}"
        raise InputError(
            f"expected Ray {MINOR}, the version that Tandem is tested with, got {found}",
            f"pip install 'ray[serve,data]>={MINOR},<{after}'",
        )
