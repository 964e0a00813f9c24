"""Opens the store of an address: a local directory, or a prefix in an S3 bucket."""

from __future__ import annotations

from tandem.errors import InputError
from tandem.user_files import check_spelling
from tandem_workers.storage.local_store import LocalStore
from tandem_workers.storage.s3_address import SCHEME
from tandem_workers.storage.store import Store


def open_store(uri: str) -> Store:
    """The store at a local directory, which need not exist yet, or at s3://bucket/prefix. Sends no request.

    Raises:
        InputError: an address of another kind.
        OutputError: the path is a file, not a directory.
    """
    if uri.startswith(SCHEME):
        from tandem_workers.storage.s3_store import S3Store  # boto3 takes a second to import

        return S3Store(uri)
    check_spelling(uri)
    if "://" in uri:
        raise InputError(f"out: expected a local directory or s3://bucket/prefix, got {uri!r}")
    return LocalStore(uri)
