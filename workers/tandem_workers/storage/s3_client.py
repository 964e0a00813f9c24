"""The boto3 client of everything that reads or writes S3, and its errors in one line.

One client for reading and writing: credentials, profile, region, endpoint (AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3),
certificate authority (AWS_CA_BUNDLE) and proxy (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) come from the standard AWS chain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore import exceptions
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tandem.errors import TandemError
from tandem_workers.storage.s3_retry import CONFLICTS, CONNECT_TIMEOUT_S, Patience, Retries

CONNECTIONS = 16  # of one client
MISSING = ("404", "NoSuchKey", "NotFound")

HINTS = {
    "check the keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and that they belong to this endpoint": (
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidToken",
    ),
    "the keys are wrong, or the policy of user or bucket forbids this": ("403", "Forbidden", "AccessDenied"),
    "the session has ended: get new keys": ("ExpiredToken", "TokenRefreshRequired"),
    "set the clock of this machine": ("RequestTimeTooSkewed",),
    "check the bucket's name, and that AWS_ENDPOINT_URL is the store that has it": ("NoSuchBucket",),
    "check the address: every letter of a key counts": MISSING,
    "set AWS_DEFAULT_REGION to the bucket's region": ("301", "PermanentRedirect", "AuthorizationHeaderMalformed"),
    "AWS_ENDPOINT_URL has to be the store itself: a redirect led nowhere": ("302", "307", "TemporaryRedirect"),
    "other writers of this key did not end: run the same command again": CONFLICTS,
}
DEFAULT_HINT = "credentials, region and endpoint come from the standard AWS variables and files"


class AnswerError(Exception):
    """The store's response does not match the request."""


class SettingsError(Exception):
    """The endpoint or the region in the AWS settings is invalid."""


FAILURES = (ClientError, BotoCoreError, AnswerError, SettingsError, ConnectionError)


def make_client(patience: Patience, **more: Any) -> Any:
    """A boto3 client with the time-outs and retries of `patience`.

    `more` are settings of botocore's Config, or `region_name`.
    """
    region = more.pop("region_name", None)
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},  # botocore's own retries are off: see `s3_retry`
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=patience.read_timeout_s,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        **more,
    )
    try:
        client = boto3.session.Session().client("s3", config=config, region_name=region)
    except ValueError as error:
        raise SettingsError(without_login(str(error))) from None
    if "@" in client.meta.endpoint_url:  # requests would not use the login, and messages would show it
        found = without_login(client.meta.endpoint_url)
        raise SettingsError(f"expected an endpoint without user and password, got {found}")
    Retries(patience).register(client)
    return client


def without_login(text: str) -> str:
    """A message about an endpoint, without the user and the password that its address may hold."""
    return re.sub(r"^(\w+ \w+: )?(\w+://)?.*@", r"\1\2***@", text)


def code_of(error: ClientError) -> str:
    """The store's error code, or the HTTP status for a HEAD."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def one_line(kind: type[TandemError], verb: str, bucket: str, key: str) -> Iterator[None]:
    """Context manager: raises errors of the store or the connection as `kind`, with request, cause and remedy."""
    try:
        yield
    except FAILURES as error:
        cause, hint = explain(error)
        raise kind(f"cannot {verb} bucket {bucket}, key {key or '-'}: {cause}", hint) from error


def explain(error: Exception) -> tuple[str, str]:
    """Cause and remedy of an error of boto3, each one sentence."""
    if isinstance(error, ClientError):
        code, detail = code_of(error), error.response.get("Error", {})
        hint = next((hint for hint, codes in HINTS.items() if code in codes), DEFAULT_HINT)
        return f"{code or '?'}: {' '.join(str(detail.get('Message', error)).split())}", hint
    return " ".join(str(error).split()), _hint_of_way(error)


def _hint_of_way(error: Exception) -> str:
    if isinstance(error, SettingsError):
        return "AWS_ENDPOINT_URL has to be http://HOST:PORT or https://HOST:PORT, AWS_DEFAULT_REGION a region's name"
    if isinstance(error, exceptions.SSLError):
        return "AWS_CA_BUNDLE=/path/to/ca.pem names the certificate authority of a private store or proxy"
    if isinstance(error, exceptions.ProxyConnectionError):
        return "HTTPS_PROXY and HTTP_PROXY name the proxy, NO_PROXY the hosts that are reached without it"
    if isinstance(error, exceptions.ProfileNotFound):
        return "AWS_PROFILE has to name a profile of ~/.aws/config"
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError)):
        return "AWS_ENDPOINT_URL names the store, HTTPS_PROXY and HTTP_PROXY the proxy on the way to it"
    return DEFAULT_HINT
