"""Reads S3 objects: whole, by ranges, or into a file. Never mixes two versions of an object.

Every request after the first requires the same ETag (`If-Match`). A body that breaks off is resumed from there.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import ClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError

from tandem.errors import OutputError
from tandem_workers.storage.s3_client import AnswerError, code_of, one_line
from tandem_workers.storage.s3_parallel import in_parallel
from tandem_workers.storage.s3_retry import describe_request
from tandem_workers.storage.waiting_notice import say_waiting

CHUNK_BYTES = 1 << 20
PART_BYTES = 8 << 20
PARTS_AT_ONCE = 10
BODY_ATTEMPTS = 5  # in a row without a new byte; the client retries each of them too
VERSIONS = 5  # attempts if an object is replaced while it is read
BROKEN = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, ConnectionError)
T = TypeVar("T")
CHANGED = ("PreconditionFailed", "412")


class ObjectChangedError(AnswerError):
    """The object was replaced while it was read."""

    def __init__(self) -> None:
        super().__init__("the object was replaced while it was read")


def head(client: Any, bucket: str, key: str) -> dict[str, Any]:
    """The response to a HEAD. After an error, a GET of one byte raises the cause, which a HEAD does not contain."""
    try:
        return dict(client.head_object(Bucket=bucket, Key=key))
    except ClientError as error:
        if code_of(error).isdigit():
            client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")["Body"].close()
        raise


def of_one_version(read: Callable[[], T]) -> T:
    """Return `read()`, repeated if the object was replaced meanwhile. ObjectChangedError after VERSIONS attempts."""
    for _ in range(VERSIONS - 1):
        with suppress(ObjectChangedError):
            return read()
    return read()


def read_object(client: Any, bucket: str, key: str) -> bytes:
    """A whole object: one GET, and more only if the connection breaks. ClientError, or ObjectChangedError."""

    def read() -> bytes:
        answer = client.get_object(Bucket=bucket, Key=key)
        data = bytearray()
        _receive(bucket, key, answer["Body"], data)
        return bytes(data) + read_range(client, bucket, key, answer["ETag"], len(data), answer["ContentLength"])

    return of_one_version(read)


def read_range(client: Any, bucket: str, key: str, etag: str, start: int, end: int) -> bytes:
    """Bytes from `start` to before `end` of the version with this ETag. ObjectChangedError if it has changed."""
    data = bytearray()
    broken = 0
    while len(data) < end - start:
        received = len(data)
        try:
            span = f"bytes={start + received}-{end - 1}"
            answer = client.get_object(Bucket=bucket, Key=key, Range=span, IfMatch=etag)
        except ClientError as error:
            if code_of(error) in CHANGED:
                raise ObjectChangedError from error
            raise
        if answer["ETag"].strip('"') != etag.strip('"'):  # the store ignores If-Match
            answer["Body"].close()
            raise ObjectChangedError
        if cause := _receive(bucket, key, answer["Body"], data):
            broken = broken + 1 if len(data) == received else 0
            if broken == BODY_ATTEMPTS:
                raise cause
            time.sleep(0.1 * 2**broken)
        elif len(data) != end - start:
            raise AnswerError(f"expected {end - start} bytes for the range {span}, got {len(data)}")
    return bytes(data)


def download(client: Any, bucket: str, key: str, version: dict[str, Any], path: Path) -> None:
    """Download the version described by a HEAD into a file, in parts. Raises like `read_range`, or OSError."""
    size, etag = version["ContentLength"], version["ETag"]
    with path.open("wb") as file:

        def fetch_part(start: int) -> int:
            data = read_range(client, bucket, key, etag, start, min(start + PART_BYTES, size))
            return os.pwrite(file.fileno(), data, start)

        written = sum(in_parallel(fetch_part, range(0, size, PART_BYTES), PARTS_AT_ONCE))
    if written != size:
        raise OSError(f"wrote {written} of {size} bytes")


class ObjectReader(io.RawIOBase):
    """An object as a seekable file. Each read is a request, so wrap it in a buffer. Reading raises OutputError."""

    def __init__(self, client: Any, bucket: str, key: str, version: dict[str, Any]) -> None:
        self.client, self.bucket, self.key = client, bucket, key
        self.size, self.etag = version["ContentLength"], version["ETag"]
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """The rest in one request; the inherited method would send one for every 8 KiB."""
        return self._take(self.size)

    def _take(self, length: int) -> bytes:
        start = min(self.position, self.size)
        with one_line(OutputError, "read", self.bucket, self.key):
            end = min(start + length, self.size)
            data = read_range(self.client, self.bucket, self.key, self.etag, start, end)
        self.position += len(data)
        return data


def _receive(bucket: str, key: str, body: Any, data: bytearray) -> Exception | None:
    """Append the data of a body. Returns the error if it broke off, else None."""
    last_data_at = time.monotonic()
    try:
        while chunk := body.read(CHUNK_BYTES):
            data += chunk
            last_data_at = time.monotonic()
    except BROKEN as error:
        say_waiting(describe_request("GetObject", {"Bucket": bucket, "Key": key}), "no more of its body", last_data_at)
        return error
    finally:
        body.close()
    return None
