"""s3:// addresses, taken literally: S3 keys may hold '#', '?', '%' and spaces, which URL parsers cut or decode."""

from __future__ import annotations

import re

from tandem.errors import InputError

SCHEME = "s3://"
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")  # buckets of before 2018 included
KEY_BYTES = 1024


def split_address(address: str, expected: str = "s3://bucket/key") -> tuple[str, str]:
    """Bucket and key of s3://bucket/key, taken literally; the key may be empty.

    Raises InputError, naming `expected`, unless the bucket name is valid and the key is printable, at most 1,024 bytes
    in UTF-8 and without the parts '.' and '..', which proxies resolve.
    """
    bucket, _, key = address.removeprefix(SCHEME).partition("/")
    if not address.startswith(SCHEME) or not BUCKET.fullmatch(bucket):
        raise InputError(f"expected {expected}, got {address!r}")
    if not key.isprintable() or any(part in (".", "..") for part in key.split("/")):
        raise InputError(f"expected {expected} with a key of plain names between slashes, got {address!r}")
    if (size := len(key.encode())) > KEY_BYTES:
        raise InputError(f"expected {expected} with a key of at most {KEY_BYTES} bytes, got {size}")
    return bucket, key


def split_object(address: str) -> tuple[str, str]:
    """Bucket and key of one object. Raises InputError, also if the key is missing or ends with a slash."""
    bucket, key = split_address(address)
    if not key or key.endswith("/"):
        raise InputError(f"expected s3://bucket/key, got {address!r}")
    return bucket, key


def split_prefix(address: str, option: str) -> tuple[str, str]:
    """Bucket and prefix of s3://bucket/prefix, the prefix without slashes at its ends. Raises InputError."""
    expected = "s3://bucket/prefix"
    try:
        bucket, key = split_address(address, expected)
    except InputError as error:
        raise InputError(f"{option}: {error}") from None
    prefix = key.strip("/")
    if "//" in prefix:
        raise InputError(f"{option}: expected {expected} with a prefix of plain names between slashes, got {address!r}")
    return bucket, prefix
