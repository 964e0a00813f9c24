"""What killed writers leave in a bucket: multipart uploads that nobody completes, and temporary objects."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from tandem_workers.storage import layout


def abort_uploads(client: Any, bucket: str, prefix: str, age_s: float) -> None:
    """Give up the multipart uploads of a dataset at a prefix that are at least so old. Raises ClientError.

    Those of other names stay: at the root of a bucket they are of other datasets, or of other programs.
    """
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
        for upload in page.get("Uploads", []):
            if not layout.is_ours(upload["Key"].removeprefix(prefix)):
                continue
            if not age_s or upload["Initiated"] < time_before(page, age_s):
                client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def remove_old(client: Any, bucket: str, prefix: str, age_s: float) -> None:
    """Remove the objects below a prefix that are at least so old. Raises ClientError."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if item["LastModified"] < time_before(page, age_s):
                client.delete_object(Bucket=bucket, Key=item["Key"])


def time_before(answer: Any, seconds: float) -> datetime:
    """So many seconds before an answer was sent, by the clock of the store; by ours where it names no time."""
    sent = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    return (parsedate_to_datetime(sent) if sent else datetime.now(UTC)) - timedelta(seconds=seconds)
