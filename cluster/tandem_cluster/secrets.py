"""Recognises secrets: names of variables, and addresses with a user or password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Names of variables whose values are secret
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASS|PWD|CREDENTIAL|AUTH|(^|_)PAT($|_)", re.I)
WITH_USER = re.compile(r"\w+://[^/\s]*@")


def has_user(value: Any) -> bool:
    """Whether a value contains an address with a user or password."""
    if isinstance(value, Mapping):
        return any(map(has_user, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_user, value))
    return isinstance(value, str) and WITH_USER.search(value) is not None
