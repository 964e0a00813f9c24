"""Conditional puts of large files to S3, in parts."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tandem_workers.storage.s3_parallel import in_parallel

PART_BYTES = 64 << 20
PARTS_AT_ONCE = 4
CLAIM_LIFE_S = 10.0  # a completion takes less than a second
# Error codes for a write that lost the race; NoSuchUpload: our own completion succeeded but its answer was lost, or
# the dataset was closed meanwhile
TAKEN = ("PreconditionFailed", "412", "NoSuchUpload")


def hash_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def checked(data: bytes, found: bytes) -> dict[str, Any]:
    """The bytes, and the hash by which the server checks the received data."""
    return {"Body": data, "ChecksumSHA256": base64.b64encode(found).decode()}


def put_parts(client: Any, described: Mapping[str, Any], claim_key: str, data: bytes) -> None:
    """Put a file unless it exists, else raise ClientError with a code in TAKEN. Leaves nothing half-written."""
    place = {name: described[name] for name in ("Bucket", "Key")}
    upload = client.create_multipart_upload(**described)["UploadId"]

    def put_part(number: int) -> dict[str, Any]:
        body = memoryview(data)[(number - 1) * PART_BYTES : number * PART_BYTES]
        tag = client.upload_part(**place, UploadId=upload, PartNumber=number, Body=io.BytesIO(body))["ETag"]
        return {"PartNumber": number, "ETag": tag}

    try:
        parts = in_parallel(put_part, range(1, -(-len(data) // PART_BYTES) + 1), PARTS_AT_ONCE)
        with _alone(client, place["Bucket"], claim_key):
            client.complete_multipart_upload(
                **place, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )
    except BaseException as error:
        if not isinstance(
            error, BotoCoreError
        ):  # else the store does not respond; closing the dataset aborts the upload
            with suppress(ClientError, BotoCoreError):
                client.abort_multipart_upload(**place, UploadId=upload)
        raise


@contextmanager
def _alone(client: Any, bucket: str, key: str) -> Iterator[None]:
    """Context manager: only one writer at a time completes a path.

    Some servers accept two concurrent conditional completions (SeaweedFS 4.48), but none accepts two conditional puts.
    The claim of a writer that died expires after CLAIM_LIFE_S.
    """
    until = time.monotonic() + CLAIM_LIFE_S
    while time.monotonic() < until:
        try:
            client.put_object(Bucket=bucket, Key=key, Body=b"", IfNoneMatch="*")
            break
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in TAKEN:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        with suppress(ClientError, BotoCoreError):  # the claim expires anyway
            client.delete_object(Bucket=bucket, Key=key)
