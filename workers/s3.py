"""A dataset in an S3 bucket: conditional puts, multipart for large files, bounded retries.

Reading goes through pyarrow, which can seek; writing through boto3, since pyarrow has no conditional put.
Credentials, region and endpoint come from the standard AWS chain, AWS_ENDPOINT_URL included.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, BinaryIO

import boto3
import pyarrow as pa
import pyarrow.fs
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tandem.errors import InputError, OutputError
from workers.store import TEMPORARY, TEMPORARY_LIFE_S, Store, Stored

SINGLE_BYTES = 256 << 20  # larger files go in parts
PART_BYTES = 64 << 20
PUTS_AT_ONCE = 16  # of one shard in folder format; a client keeps as many connections
# botocore waits up to 0.05, 0.1, 0.2, ... and from the tenth time on 20 s, half of it on average: some 85 s in all
WRITE_ATTEMPTS = 18
READ_BYTES = 1 << 20  # at once: a tar is read header by header
CHECK_ATTEMPTS = 3  # before a job starts, a person waits
IN_ONE_PIECE = TransferConfig(use_threads=False, multipart_threshold=1 << 40, num_download_attempts=WRITE_ATTEMPTS)
CLAIM_LIFE_S = 10.0  # a completion takes less than a second
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
HASH = "sha256"  # metadata of every object we put, so that finding it needs no reading
# What a put that came too late is told; NoSuchUpload: our own attempt to complete it was heard, the answer lost
TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "NoSuchUpload")
MISSING = ("404", "NoSuchKey", "NotFound")


def make_client(attempts: int) -> Any:
    """A boto3 client that tries a request so many times."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=PUTS_AT_ONCE,
        tcp_keepalive=True,
    )
    return boto3.session.Session().client("s3", config=config)


class S3Store(Store):
    """Objects below s3://bucket/prefix."""

    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/")
        parts = self.prefix.split("/") if self.prefix else []
        if not BUCKET.fullmatch(bucket):
            raise InputError(f"out: expected s3://bucket/prefix, got {uri!r}")
        if any(part in ("", ".", "..") for part in parts) or not self.prefix.isprintable():
            raise InputError(f"out: expected a prefix of plain names between slashes, got {self.prefix!r}")
        self.bucket = bucket
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._clients: dict[int, Any] = {}
        self._files: pyarrow.fs.S3FileSystem | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_clients": {}, "_files": None}

    def client(self, attempts: int = WRITE_ATTEMPTS) -> Any:
        """A boto3 client that tries a request so many times; made on first use, as clients cannot be pickled."""
        if attempts not in self._clients:
            self._clients[attempts] = make_client(attempts)
        return self._clients[attempts]

    def check(self) -> None:
        """The bucket exists and may be written: a probe is put and removed. OutputError naming the cause."""
        client, key = self.client(CHECK_ATTEMPTS), self.key(f"{TEMPORARY}/{uuid.uuid4().hex}")
        with self.named("use", ""):
            try:
                client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if code_of(error) not in MISSING:
                    raise
                where = client.meta.endpoint_url
                raise OutputError(f"bucket {self.bucket} does not exist at {where}", "create it first") from None
        with self.named("write", f"{TEMPORARY}/"):
            client.put_object(Bucket=self.bucket, Key=key, Body=b"")
            client.delete_object(Bucket=self.bucket, Key=key)

    def remember_job(self) -> None:
        """Nothing: see `check_shared`."""

    def check_shared(self) -> None:
        """Every node that reaches the bucket sees the same one."""

    def put_many(self, files: Iterable[tuple[str, bytes]]) -> list[Stored]:
        self.client()  # made by one thread, used by all
        with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
            return list(pool.map(lambda file: self._put(*file), files))

    def replace(self, path: str, data: bytes) -> None:
        with self.named("write", path):
            found = hash_of(data)
            self.client().put_object(**self.described(path, found), **body(data, found))

    def exists(self, path: str) -> bool:
        with self.named("read", path):
            return self._head(path) is not None

    def list_files(self, folder: str = "") -> list[str]:
        start = len(self.key("x")) - 1
        found: list[str] = []
        with self.named("list", folder):
            pages = self.client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.below(folder)):
                found += [item["Key"][start:] for item in page.get("Contents", [])]
        return sorted(path for path in found if path.split("/")[0] != TEMPORARY)

    def open(self, path: str) -> BinaryIO:
        if not self.exists(path):
            raise FileNotFoundError(f"{self.uri}/{path}")
        with self.named("read", path):
            self._files = self._files or file_system(self.client())
            file = self._files.open_input_file(f"{self.bucket}/{self.key(path)}")
        return io.BufferedReader(NamedReader(file, partial(self.named, "read", path)), READ_BYTES)

    def read(self, path: str) -> bytes:
        data = io.BytesIO()
        with self.named("read", path):
            try:  # tries again too when the connection breaks within the body, which get_object alone does not
                self.client().download_fileobj(self.bucket, self.key(path), data, Config=IN_ONE_PIECE)
                return data.getvalue()
            except ClientError as error:
                if code_of(error) in MISSING:
                    raise FileNotFoundError(f"{self.uri}/{path}") from None
                raise

    def remove(self, path: str) -> None:
        with self.named("remove", path):
            self.client().delete_object(Bucket=self.bucket, Key=self.key(path))

    def clean(self) -> None:
        """Give up multipart uploads that were begun long ago and never completed."""
        old = datetime.now(timezone.utc) - timedelta(seconds=TEMPORARY_LIFE_S)
        client = self.client()
        with suppress(ClientError):  # listing uploads may be forbidden, and the bucket's own rules may clean
            found = client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.below())
            for upload in found.get("Uploads", []):
                if upload["Initiated"] < old:
                    client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def presign(self, path: str, seconds: int) -> str:
        """An address that anyone may get the file from for so long."""
        parameters = {"Bucket": self.bucket, "Key": self.key(path)}
        return str(self.client().generate_presigned_url("get_object", Params=parameters, ExpiresIn=seconds))

    def key(self, path: str) -> str:
        """Key of a file of the dataset."""
        return "/".join(part for part in (self.prefix, path) if part)

    def below(self, folder: str = "") -> str:
        """What all keys of a folder, or of the dataset, begin with."""
        return f"{key}/" if (key := self.key(folder)) else ""

    def _put(self, path: str, data: bytes) -> Stored:
        found = hash_of(data)
        with self.named("write", path):
            try:
                if len(data) > SINGLE_BYTES:
                    self._put_parts(path, data, found)
                else:
                    self.client().put_object(**self.described(path, found), **body(data, found), IfNoneMatch="*")
            except ClientError as error:
                if code_of(error) not in TAKEN:
                    raise
                return self._measure(path)
        return Stored(path, len(data), found.hex())

    def described(self, path: str, found: bytes) -> dict[str, Any]:
        """What names an object and tells its hash."""
        return {"Bucket": self.bucket, "Key": self.key(path), "Metadata": {HASH: found.hex()}}

    def _put_parts(self, path: str, data: bytes, found: bytes) -> None:
        client, place = self.client(), {"Bucket": self.bucket, "Key": self.key(path)}
        upload = client.create_multipart_upload(**self.described(path, found))["UploadId"]

        def put_part(number: int) -> dict[str, Any]:
            body = memoryview(data)[(number - 1) * PART_BYTES : number * PART_BYTES]
            tag = client.upload_part(**place, UploadId=upload, PartNumber=number, Body=io.BytesIO(body))["ETag"]
            return {"PartNumber": number, "ETag": tag}

        try:
            with ThreadPoolExecutor(4) as pool:
                parts = list(pool.map(put_part, range(1, -(-len(data) // PART_BYTES) + 1)))
            with self._alone(path):
                client.complete_multipart_upload(
                    **place, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
                )
        except BaseException:
            with suppress(ClientError, BotoCoreError):
                client.abort_multipart_upload(**place, UploadId=upload)
            raise

    @contextmanager
    def _alone(self, path: str) -> Iterator[None]:
        """Let writers complete one path one after the other.

        Not every server decides between two completions under way at once (SeaweedFS 4.48 lets both in), but all
        decide between two plain puts. A claim whose writer died counts for nothing after CLAIM_LIFE_S.
        """
        claim = {"Bucket": self.bucket, "Key": self.key(f"{TEMPORARY}/claims/{path}")}
        until = time.monotonic() + CLAIM_LIFE_S
        while time.monotonic() < until:
            try:
                self.client().put_object(**claim, Body=b"", IfNoneMatch="*")
                break
            except ClientError as error:
                if code_of(error) not in TAKEN:
                    raise
                time.sleep(0.1)
        try:
            yield
        finally:
            self.client().delete_object(**claim)

    def _head(self, path: str) -> dict[str, Any] | None:
        try:
            return dict(self.client().head_object(Bucket=self.bucket, Key=self.key(path)))
        except ClientError as error:
            if code_of(error) in MISSING:
                return None
            raise

    def _measure(self, path: str) -> Stored:
        """Size and hash of an object that somebody else has put."""
        head = self._head(path)
        if head is None:
            raise OutputError(
                f"{self.uri}/{path} was there a moment ago and is gone", hint="run the same command again"
            )
        digest = head["Metadata"].get(HASH) or hashlib.sha256(self.read(path)).hexdigest()
        return Stored(path, head["ContentLength"], digest, created=False)

    @contextmanager
    def named(self, verb: str, path: str) -> Iterator[None]:
        """Errors of the server and of the way there as one OutputError with bucket, key and cause."""
        try:
            yield
        except ClientError as error:
            detail = error.response.get("Error", {})
            cause = f"{detail.get('Code', '?')}: {detail.get('Message', error)}"
            raise OutputError(f"cannot {verb} bucket {self.bucket}, key {self.key(path) or '-'}: {cause}") from error
        except FileNotFoundError:
            raise
        except (BotoCoreError, OSError, pa.ArrowException) as error:
            cause = " ".join(str(error).split())
            hint = "credentials, region and endpoint come from the standard AWS variables and files"
            raise OutputError(
                f"cannot {verb} bucket {self.bucket}, key {self.key(path) or '-'}: {cause}", hint
            ) from error


class NamedReader(io.RawIOBase):
    """A file of pyarrow's whose errors tell bucket and key."""

    def __init__(self, file: Any, named: Callable[[], AbstractContextManager[None]]) -> None:
        self.file, self.named = file, named

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self.file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self.file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with self.named():
            return int(self.file.readinto(buffer))

    def close(self) -> None:
        self.file.close()
        super().close()


def hash_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def body(data: bytes, found: bytes) -> dict[str, Any]:
    """The bytes, and the hash by which the server checks what arrived."""
    return {"Body": data, "ChecksumSHA256": base64.b64encode(found).decode()}


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def file_system(client: Any) -> pyarrow.fs.S3FileSystem:
    """pyarrow's view of the server that a boto3 client uses."""
    endpoint = client.meta.endpoint_url
    ours = None if endpoint.endswith((".amazonaws.com", ".amazonaws.com.cn")) else endpoint
    retries = pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=WRITE_ATTEMPTS)
    return pyarrow.fs.S3FileSystem(region=client.meta.region_name, endpoint_override=ours, retry_strategy=retries)
