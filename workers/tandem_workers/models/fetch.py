"""Weights and label files by s3:// address: fetched once per machine into a cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

from tandem.errors import InputError
from tandem.hashing import file_sha256
from tandem_workers.storage.s3_address import split_object

NAME_BYTES = 200  # of 255, with room for suffixes


def is_remote(address: str) -> bool:
    return "://" in address


def cache_folder() -> Path:
    """TANDEM_CACHE, else ~/.cache/tandem."""
    return Path(os.environ.get("TANDEM_CACHE") or Path.home() / ".cache" / "tandem")


def fetch(address: str, patient: bool = False) -> Path:
    """Local copy of s3://bucket/key. Concurrent processes share one download.

    `patient=True` retries throttling for over a minute (workers, when all nodes fetch at once); False fails fast
    (driver).

    A cached file is used if the object's ETag and the file's hash, stored next to it, are unchanged. An object that is
    replaced during the download is fetched again, so that a copy is of one version. Credentials, region, endpoint,
    proxy and certificates come from the standard AWS chain. Raises InputError naming bucket, key, cause and remedy.
    """
    bucket, key = split_object(address)
    # boto3 takes a second to import
    from tandem_workers.storage.s3_client import make_client, one_line
    from tandem_workers.storage.s3_read import of_one_version
    from tandem_workers.storage.s3_retry import PATIENT, QUICK

    try:
        with one_line(InputError, "fetch", bucket, key):
            client = make_client(PATIENT if patient else QUICK)
            return of_one_version(lambda: _fetch_version(client, address, bucket, key))
    except OSError as error:
        raise InputError(f"cannot keep {address} in {cache_folder()}: {error}", "TANDEM_CACHE names another") from error


def _fetch_version(client: Any, address: str, bucket: str, key: str) -> Path:
    """A copy of the current version. Raises ObjectChangedError if it is replaced during the download."""
    from tandem_workers.storage.s3_read import download, head

    version = head(client, bucket, key)
    name = hashlib.sha256(f"{address}\n{version['ETag']}".encode()).hexdigest()[:32]
    target = cache_folder() / name / file_name(key)
    if is_intact(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_intact(target):
            temporary = target.with_name(target.name + ".tmp")
            try:
                download(client, bucket, key, version, temporary)
                hash_file(target).write_text(file_sha256(temporary))
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
    return target


def file_name(key: str) -> str:
    """The last part of a key, its beginning cut to fit file systems; the extension is kept."""
    return Path(key).name.encode()[-NAME_BYTES:].decode(errors="ignore")


def hash_file(path: Path) -> Path:
    """Path of the file that holds the hash of a fetched file."""
    return path.with_name(path.name + ".sha256")


def fetched_sha256(path: Path) -> str:
    """Hex sha256 of a cached file at the time of its download."""
    return hash_file(path).read_text()


def is_intact(path: Path) -> bool:
    return path.exists() and hash_file(path).exists() and file_sha256(path) == fetched_sha256(path)
