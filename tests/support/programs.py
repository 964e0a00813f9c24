"""Programs of the machine that some tests need: without them a test is skipped, and says so, except in CI."""

from __future__ import annotations

import os
import shutil

import pytest

REQUIRE = "TANDEM_REQUIRE_PROGRAMS"  # set by .ci/run, which installs them: then a missing one is a failure


def need(*names: str) -> str:
    """Path of the first program that is there."""
    for name in names:
        if path := shutil.which(name):
            return path
    reason = f"{names[0]} is not installed on this machine (apt-get install {names[0]})"
    if os.environ.get(REQUIRE):
        pytest.fail(reason)
    pytest.skip(reason)
