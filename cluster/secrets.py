"""What looks like a secret: names of variables, and addresses with a user or password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Names of variables whose values nobody else should read
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASS|PWD|CREDENTIAL|AUTH|(^|_)PAT($|_)", re.I)
WITH_USER = re.compile(r"\w+://[^/\s]*@")


def has_user(value: Any) -> bool:
    """Whether an address with user or password is anywhere in a value."""
    if isinstance(value, Mapping):
        return any(map(has_user, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_user, value))
    return isinstance(value, str) and WITH_USER.search(value) is not None
