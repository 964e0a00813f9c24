"""API keys. Only their digests leave the process that was started with them."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable

from tandem.errors import InputError

KEYS, DIGESTS = "TANDEM_API_KEYS", "TANDEM_API_KEY_DIGESTS"
MIN_KEY = 16  # characters: shorter keys could be guessed from their digests


def digest(key: str) -> str:
    """Hash of an API key, by which the server recognises it without storing it."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_known(authorization: str | None, digests: tuple[str, ...], api_key: str | None = None) -> bool:
    """Whether a header has one of the keys, checked in constant time: `Authorization: Bearer KEY`, or `api-key: KEY` as
    clients of Azure OpenAI send it."""
    scheme, _, key = (authorization or "").partition(" ")
    is_bearer = is_key(key.strip(), digests) and scheme.lower() == "bearer"
    return is_key((api_key or "").strip(), digests) or is_bearer


def is_key(key: str, digests: tuple[str, ...]) -> bool:
    """Whether this is one of the keys, checked in constant time."""
    found = digest(key)
    matches = [hmac.compare_digest(found, known) for known in digests]  # always all of them, for constant time
    return any(matches)


def key_digests() -> tuple[str, ...]:
    """Digests of the API keys in the environment: of the keys themselves, or as they are given.

    Raises InputError for keys that could be guessed, for what is no digest, and for an empty variable, as whoever sets
    it wants keys to be required.
    """
    return (*map(digest, listed(KEYS, "keys", check_key)), *listed(DIGESTS, "SHA-256 digests in hex", check_digest))


def hide_keys() -> None:
    """Leave only digests in the environment, which processes started from here inherit."""
    digests = key_digests()
    os.environ.pop(KEYS, None)
    if digests:
        os.environ[DIGESTS] = ",".join(digests)


def listed(variable: str, what: str, check: Callable[[str], None]) -> list[str]:
    if variable not in os.environ:
        return []
    values = [value.strip() for value in os.environ[variable].split(",") if value.strip()]
    if not values:
        raise InputError(f"{variable}: expected {what} separated by commas, got none", "unset it to serve without keys")
    for value in values:
        check(value)
    return values


def check_key(key: str) -> None:
    if len(key) < MIN_KEY or not (key.isascii() and key.isprintable()):
        got = f"one of {len(key)}" if key.isascii() else "one with other characters"
        raise InputError(f"{KEYS}: expected keys of {MIN_KEY} ASCII characters or more, got {got}")


def check_digest(text: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise InputError(f"{DIGESTS}: expected SHA-256 digests of 64 hex digits, got one of {len(text)} characters")
