"""A dataset in an S3 bucket: conditional puts, multipart for large files, bounded retries."""

from __future__ import annotations

import base64
import hashlib
import io
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

from tandem.errors import OutputError
from workers.s3_address import SCHEME, split_prefix
from workers.s3_client import CHECK_ATTEMPTS, CONNECTIONS, MISSING, WRITE_ATTEMPTS, code_of, make_client, one_line
from workers.s3_read import ObjectReader, read_object
from workers.store import TEMPORARY, TEMPORARY_LIFE_S, Store, Stored

SINGLE_BYTES = 256 << 20  # larger files go in parts
PART_BYTES = 64 << 20
READ_BYTES = 1 << 20  # at once: a tar is read header by header
CLAIM_LIFE_S = 10.0  # a completion takes less than a second
HASH = "sha256"  # metadata of every object we put, for people and other tools
# Answers to a put that came too late; NoSuchUpload: our own attempt to complete it was heard, the answer lost
TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "NoSuchUpload")


class S3Store(Store):
    """Objects below s3://bucket/prefix."""

    def __init__(self, uri: str) -> None:
        self.bucket, self.prefix = split_prefix(uri, "out")
        self.uri = f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")
        self._clients: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "signer"} | {"_clients": {}}

    def client(self, attempts: int = WRITE_ATTEMPTS) -> Any:
        """A boto3 client that tries a request so many times; made on first use, as clients cannot be pickled.

        OutputError where the settings of AWS's variables and files cannot be used.
        """
        if attempts not in self._clients:
            with self.named("use", ""):
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
        with ThreadPoolExecutor(CONNECTIONS) as pool:
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
        with self.named("read", path):
            version = self._head(path)
        if version is None:
            raise FileNotFoundError(f"{self.uri}/{path}")
        return io.BufferedReader(ObjectReader(self.client(), self.bucket, self.key(path), version), READ_BYTES)

    def read(self, path: str) -> bytes:
        with self.named("read", path):
            try:
                return read_object(self.client(), self.bucket, self.key(path))
            except ClientError as error:
                if code_of(error) in MISSING:
                    raise FileNotFoundError(f"{self.uri}/{path}") from None
                raise

    def remove(self, path: str) -> None:
        with self.named("remove", path):
            self.client().delete_object(Bucket=self.bucket, Key=self.key(path))

    def clean(self) -> None:
        """Give up multipart uploads that were begun long ago and never completed."""
        old = datetime.now(UTC) - timedelta(seconds=TEMPORARY_LIFE_S)
        client = self.client()
        with suppress(ClientError):  # listing uploads may be forbidden, and the bucket's own rules may clean
            found = client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.below())
            for upload in found.get("Uploads", []):
                if upload["Initiated"] < old:
                    client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def presign(self, path: str, seconds: int) -> str:
        """An address that anyone may get the file from for so long, signed by version 4, which every region takes."""
        parameters = {"Bucket": self.bucket, "Key": self.key(path)}
        return str(self.signer.generate_presigned_url("get_object", Params=parameters, ExpiresIn=seconds))

    @cached_property
    def signer(self) -> Any:
        """A client for presigned addresses. Their signature holds for the bucket's own region alone."""
        with self.named("sign addresses of", ""):
            try:
                answer = self.client(CHECK_ATTEMPTS).head_bucket(Bucket=self.bucket)
            except ClientError as error:  # where listing is forbidden, the answer names the region all the same
                answer = error.response
            region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
            return make_client(CHECK_ATTEMPTS, signature_version="s3v4", region_name=region)

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
        """Size and hash of what stands under a name that was taken. Its metadata are its writer's word, not read."""
        try:
            data = self.read(path)
        except FileNotFoundError:
            raise OutputError(
                f"{self.uri}/{path} was there a moment ago and is gone", hint="run the same command again"
            ) from None
        return Stored(path, len(data), hash_of(data).hex(), created=False)

    def named(self, verb: str, path: str) -> AbstractContextManager[None]:
        """Errors of the server and of the way there as one OutputError with bucket, key, cause and remedy."""
        return one_line(OutputError, verb, self.bucket, self.key(path))


def hash_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def body(data: bytes, found: bytes) -> dict[str, Any]:
    """The bytes, and the hash by which the server checks what arrived."""
    return {"Body": data, "ChecksumSHA256": base64.b64encode(found).decode()}
