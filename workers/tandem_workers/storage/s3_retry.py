"""Retries of requests to S3, limited by time, and the line that reports them.

botocore's own modes count retries, and all requests of a client share about 35: sixteen writers use them up within a
second of an outage. Here the limit is the time since the first failure of each request.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ConnectionError as NoConnection
from botocore.exceptions import HTTPClientError, ReadTimeoutError

from tandem_workers.storage.waiting_notice import say_waiting

CONNECT_TIMEOUT_S = 5.0
CONFLICTS = ("ConditionalRequestConflict", "OperationAborted")  # another request for this key is under way
THROTTLED = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "429", "503")
RETRIED_CODES = (*CONFLICTS, *THROTTLED, "RequestTimeout", "RequestTimeoutException", "PriorRequestNotComplete")
RETRIED_STATUSES = (307, 429, 500, 502, 503, 504)
MIN_ATTEMPTS = 3  # regardless of time: uploads of hundreds of megabytes may break off late
BEGAN, FAILING_SINCE = "tandem_began", "tandem_failing_since"  # in a request's context


@dataclass(frozen=True)
class Patience:
    """Limits of a request: it ends at most `read_timeout_s + seconds + read_timeout_s` after its last byte was sent.

    Attributes:
        seconds: it is retried for this long after its first failure.
        attempts: most attempts.
        read_timeout_s: longest silence of the store.
    """

    seconds: float
    attempts: int
    read_timeout_s: float


PATIENT = Patience(seconds=90, attempts=1000, read_timeout_s=20)  # 130 s at most
QUICK = Patience(seconds=30, attempts=3, read_timeout_s=10)  # before a job starts, while the user waits: 31 s


class Retries:
    """The retries of one client, as handlers of botocore's events."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience

    def register(self, client: Any) -> None:
        events = client.meta.events
        events.register("before-call.s3", self.begin)
        events.register_first("needs-retry.s3", self.needs_retry)  # before the handler that follows redirects

    def begin(self, context: dict[str, Any], **_: Any) -> None:
        context[BEGAN] = time.monotonic()

    def needs_retry(
        self, response: Any, caught_exception: Exception | None, attempts: int, request_dict: Any, **more: Any
    ) -> float | None:
        """Seconds until the next attempt, None for none."""
        operation = more["operation"].name
        if response is not None and (attempts > 1 or operation == "HeadBucket"):
            end_redirects(response, request_dict)
        code = retry_code(operation, response, caught_exception)
        if code is None:
            return None
        now, context = time.monotonic(), request_dict["context"]
        left_s = context.setdefault(FAILING_SINCE, now) + self.patience.seconds - now
        if attempts >= self.patience.attempts or (left_s <= 0 and attempts >= MIN_ATTEMPTS):
            return None
        request = describe_request(operation, context.get("s3_redirect", {}).get("params", {}))
        say_waiting(request, code, context.get(BEGAN, now), left_s)
        first, longest = (1.0, 20.0) if code in THROTTLED else (0.05, 5.0)
        return min(random.random() * min(longest, first * 2.0 ** (attempts - 1)), max(0.0, left_s))


def retry_code(operation: str, response: Any, error: Exception | None) -> str | None:
    """The error if a retry may succeed, as a code or a sentence; else None."""
    if response is None:
        return failure(error) if isinstance(error, (NoConnection, HTTPClientError)) else None
    http, parsed = response
    code = str(parsed.get("Error", {}).get("Code", ""))
    if operation == "CompleteMultipartUpload" and code in CONFLICTS:
        return None  # its parts have to be uploaded again
    return code or str(http.status_code) if code in RETRIED_CODES or http.status_code in RETRIED_STATUSES else None


def failure(error: Exception | None) -> str:
    """An error of the connection in one line."""
    return "no answer" if isinstance(error, ReadTimeoutError) else " ".join(str(error).split())


def end_redirects(response: Any, request_dict: Any) -> None:
    """Keep botocore from searching for a bucket's region forever.

    After a redirect without a region it sends a HEAD of the bucket, and after a redirect of that HEAD another one.
    """
    headers = response[1].get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if "x-amz-bucket-region" not in headers and not response[1].get("Error", {}).get("Region"):
        request_dict["context"].get("s3_redirect", {})["redirected"] = True


def describe_request(operation: str, request: Mapping[str, Any]) -> str:
    """A request in words: operation, bucket and key."""
    return (
        f"S3: {operation} of bucket {request.get('Bucket')}, key {request.get('Key') or request.get('Prefix') or '-'}"
    )
