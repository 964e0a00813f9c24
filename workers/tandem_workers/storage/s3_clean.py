"""Removes what killed writers leave in a bucket: incomplete multipart uploads, and temporary objects."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from tandem_workers.storage import layout


def abort_uploads(client: Any, bucket: str, prefix: str, age_s: float) -> None:
    """Abort the multipart uploads of a dataset at a prefix that are at least this old. Raises ClientError.

    Uploads of other names stay: at the root of a bucket they belong to other datasets or programs.
    """
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
        for upload in page.get("Uploads", []):
            if not layout.is_ours(upload["Key"].removeprefix(prefix)):
                continue
            if not age_s or upload["Initiated"] < time_before(page, age_s):
                client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def remove_old(client: Any, bucket: str, prefix: str, age_s: float) -> None:
    """Remove the objects below a prefix that are at least this old. Raises ClientError."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if item["LastModified"] < time_before(page, age_s):
                client.delete_object(Bucket=bucket, Key=item["Key"])


def time_before(answer: Any, seconds: float) -> datetime:
    """The time `seconds` before a response was sent, by the store's clock, or by ours if the response has no date."""
    sent = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    return (parsedate_to_datetime(sent) if sent else datetime.now(UTC)) - timedelta(seconds=seconds)
