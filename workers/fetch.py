"""Weights and label files by s3:// address: fetched once per machine into a cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from urllib.parse import urlparse

from tandem.errors import InputError
from tandem.hashing import file_sha256


def is_remote(address: str) -> bool:
    return "://" in address


def cache_folder() -> Path:
    """TANDEM_CACHE, else ~/.cache/tandem."""
    return Path(os.environ.get("TANDEM_CACHE") or Path.home() / ".cache" / "tandem")


def fetch(address: str, patient: bool = False) -> Path:
    """Local copy of s3://bucket/key. Processes that ask at once wait for one download.

    Where it is a node's turn, when all nodes fetch at once, be `patient`: a server that throttles is asked again for
    more than a minute. Without, what is wrong with an address is said soon.

    A file in the cache is used as long as the object's ETag is the same and the file is as it came: its hash stands
    beside it, and a damaged file is fetched again. Credentials, region and endpoint come from the standard AWS chain
    (AWS_ENDPOINT_URL included). Raises InputError naming bucket, key and cause.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    from workers.s3 import CHECK_ATTEMPTS, WRITE_ATTEMPTS, make_client  # boto3 takes a second to import

    parsed = urlparse(address)
    bucket, key = parsed.netloc, parsed.path.lstrip("/")
    if parsed.scheme != "s3" or not bucket or not key:
        raise InputError(f"expected s3://bucket/key, got {address}")
    try:
        client = make_client(WRITE_ATTEMPTS if patient else CHECK_ATTEMPTS)
        etag = client.head_object(Bucket=bucket, Key=key)["ETag"]
        name = hashlib.sha256(f"{address}\n{etag}".encode()).hexdigest()[:32]
        target = cache_folder() / name / Path(key).name
        if is_intact(target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_intact(target):
                temporary = target.with_name(target.name + ".tmp")
                client.download_file(bucket, key, str(temporary))
                hash_file(target).write_text(file_sha256(temporary))
                temporary.replace(target)
        return target
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise InputError(f"cannot fetch bucket {bucket}, key {key}: {error}") from error
    except OSError as error:
        raise InputError(f"cannot keep {address} in {cache_folder()}: {error}", "TANDEM_CACHE names another") from error


def hash_file(path: Path) -> Path:
    """Where the hash of a fetched file stands."""
    return path.with_name(path.name + ".sha256")


def fetched_sha256(path: Path) -> str:
    """Hex sha256 that a file in the cache had when it came."""
    return hash_file(path).read_text()


def is_intact(path: Path) -> bool:
    return path.exists() and hash_file(path).exists() and file_sha256(path) == fetched_sha256(path)
