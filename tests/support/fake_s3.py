"""An S3 client over a dictionary, which does to a reader what stores and networks do."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError, ResponseStreamingError


class BrokenBody(io.BytesIO):
    """A body whose connection breaks after `length` bytes."""

    def __init__(self, data: bytes, length: int) -> None:
        super().__init__(data[:length])

    def read(self, size: int | None = -1) -> bytes:
        if data := super().read(size):
            return data
        raise ResponseStreamingError(error="connection broken")


class FakeS3:
    """Objects by (bucket, key). `gets` are the parameters of every GET; `before` runs ahead of each with its number.

    `broken` says after how many bytes the body of the n-th GET breaks off. A store with `knows_if_match` False
    answers whatever version it has.
    """

    def __init__(self, objects: dict[tuple[str, str], bytes]) -> None:
        self.objects, self.gets = objects, list[dict[str, Any]]()
        self.before: Callable[[int], None] = lambda n: None
        self.broken: dict[int, int] = {}
        self.knows_if_match = True
        self.denied = ""  # the code of the answer to everything

    def head_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        if self.denied or (Bucket, Key) not in self.objects:
            status = "403" if self.denied else "404"
            raise ClientError({"Error": {"Code": status, "Message": "a HEAD says no more"}}, "HeadObject")
        data = self.objects[Bucket, Key]
        return {"ETag": etag(data), "ContentLength": len(data)}

    def get_paginator(self, name: str) -> FakeS3:
        """Only listings have pages here."""
        assert name == "list_objects_v2"
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        items = sorted((key, data) for (bucket, key), data in self.objects.items() if bucket == Bucket)
        found = [{"Key": k, "Size": len(data), "ETag": etag(data)} for k, data in items if k.startswith(Prefix)]
        return [{"Contents": found[start : start + 2]} for start in range(0, len(found), 2)]

    def get_object(self, Bucket: str, Key: str, Range: str | None = None, IfMatch: str | None = None) -> dict[str, Any]:
        self.gets.append({"Key": Key, "Range": Range, "IfMatch": IfMatch})
        number = len(self.gets)
        self.before(number)
        if self.denied or (Bucket, Key) not in self.objects:
            error = {"Code": self.denied or "NoSuchKey", "Message": "what the\nstore says"}
            raise ClientError({"Error": error}, "GetObject")
        data = self.objects[Bucket, Key]
        tag = etag(data)
        if self.knows_if_match and IfMatch not in (None, tag):
            raise ClientError({"Error": {"Code": "PreconditionFailed", "Message": "changed"}}, "GetObject")
        if Range is not None:
            first, last = map(int, Range.removeprefix("bytes=").split("-"))
            data = data[first : last + 1]
        body = BrokenBody(data, self.broken[number]) if number in self.broken else io.BytesIO(data)
        return {"ETag": tag, "ContentLength": len(data), "Body": body}


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
