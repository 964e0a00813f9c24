"""A dataset in an S3 bucket: conditional puts, multipart for large files, bounded retries."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from operator import itemgetter
from typing import Any, BinaryIO

from botocore.exceptions import ClientError

from tandem.errors import OutputError
from tandem_workers.storage.s3_address import SCHEME, split_prefix
from tandem_workers.storage.s3_clean import abort_uploads, remove_old
from tandem_workers.storage.s3_client import CONNECTIONS, MISSING, code_of, make_client, one_line
from tandem_workers.storage.s3_parallel import in_parallel
from tandem_workers.storage.s3_put import TAKEN, checked, hash_of, put_parts
from tandem_workers.storage.s3_read import ObjectReader, read_object
from tandem_workers.storage.s3_retry import CONFLICTS, PATIENT, QUICK, Patience
from tandem_workers.storage.store import TEMPORARY, TEMPORARY_LIFE_S, Store, Stored

SINGLE_BYTES = 256 << 20  # larger files are put in parts
READ_BYTES = 1 << 20  # read-ahead, as a tar is read header by header
HASH = "sha256"  # metadata key of our objects, for people and other tools
PUT_ATTEMPTS = 3  # if another file of the same name keeps appearing and disappearing
UNKNOWN_CONDITION = (400, 405, 501)  # responses of stores without If-None-Match
CONDITION_HINT = (
    "without them two writers of one shard cannot be told apart: use AWS, or a recent SeaweedFS, MinIO or R2, "
    "or a folder that all nodes mount"
)


class S3Store(Store):
    """Objects below s3://bucket/prefix."""

    def __init__(self, uri: str) -> None:
        self.bucket, self.prefix = split_prefix(uri, "out")
        self.uri = f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")
        self._clients: dict[Patience, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "signer"} | {"_clients": {}}

    def client(self, patience: Patience | None = None) -> Any:
        """A boto3 client with this patience, by default PATIENT; made on first use, as clients cannot be pickled.

        OutputError if the AWS settings are invalid.
        """
        patience = patience or PATIENT
        if patience not in self._clients:
            with self.named("use", ""):
                self._clients[patience] = make_client(patience)
        return self._clients[patience]

    def check(self) -> None:
        """Check that the bucket exists, is writable and has conditional puts: a probe is put twice and removed.

        OutputError naming the cause.
        """
        client, key = self.client(QUICK), self.key(f"{TEMPORARY}/{uuid.uuid4().hex}")
        with self.named("use", ""):
            try:
                client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if code_of(error) not in MISSING:
                    raise
                place = client.meta.endpoint_url
                raise OutputError(f"bucket {self.bucket} does not exist at {place}", "create it first") from None
        with self.named("write", f"{TEMPORARY}/"):
            fault = self._find_condition_fault(client, key)
            client.delete_object(Bucket=self.bucket, Key=key)  # after an error, `clean` removes it later
        if fault:
            place = f"bucket {self.bucket} at {client.meta.endpoint_url}"
            raise OutputError(f"{place} has no conditional writes (If-None-Match: *): {fault}", CONDITION_HINT)

    def _find_condition_fault(self, client: Any, key: str) -> str | None:
        """How the store responds to two conditional puts of one key; None if it correctly refuses the second."""
        probe = {"Bucket": self.bucket, "Key": key, "Body": b""}
        try:
            client.put_object(**probe, IfNoneMatch="*")
            client.put_object(**probe, IfNoneMatch="*")
        except ClientError as error:
            if code_of(error) in TAKEN:
                return None
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status not in UNKNOWN_CONDITION:
                raise
            client.put_object(**probe)  # raises if the error was not due to the condition
            return f"it answered {status} {code_of(error)}"
        return "of two puts of one key it took both"

    def remember_job(self, path: str) -> None:
        """Does nothing: see `check_shared`."""

    def check_shared(self) -> None:
        """Does nothing: all nodes see the same bucket."""

    def put_many(self, files: Iterable[tuple[str, bytes]]) -> list[Stored]:
        self.client()  # made by one thread, used by all
        return in_parallel(lambda file: self._put(*file), files, CONNECTIONS)

    def replace(self, path: str, data: bytes) -> None:
        with self.named("write", path):
            found = hash_of(data)
            self.client().put_object(**self.described(path, found), **checked(data, found))

    def exists(self, path: str) -> bool:
        with self.named("read", path):
            return self._head(path) is not None

    def list_files(self, folder: str = "") -> list[str]:
        return sorted(path for path, _ in self._listed(folder, self.below(folder)))

    def versions(self, path: str = "") -> dict[str, str]:
        below = self.below(path)
        found = (
            (each, item) for each, item in self._listed(path, self.key(path)) if f"{item['Key']}/".startswith(below)
        )
        return {each: f"{item['Size']} bytes, ETag {item['ETag']}" for each, item in sorted(found, key=itemgetter(0))}

    def _listed(self, path: str, start: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Paths of the objects whose keys begin with `start`, and what the store says of each."""
        length = len(self.key("x")) - 1
        with self.named("list", path):
            pages = self.client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=start):
                for item in page.get("Contents", []):
                    if (found := item["Key"][length:]).split("/")[0] != TEMPORARY:
                        yield found, item

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

    def clean(self, closing: bool = False) -> None:
        """Abort abandoned multipart uploads, and remove old temporary objects.

        Uploads are abandoned if they are old, or when closing: every shard is committed, and a writer whose upload ends
        notices that. Age is measured by the store's clock.
        """
        client = self.client()
        with (
            self.named("clean", ""),
            suppress(ClientError),
        ):  # may be forbidden; the bucket's lifecycle rules can clean instead
            abort_uploads(client, self.bucket, self.below(), 0.0 if closing else TEMPORARY_LIFE_S)
            remove_old(client, self.bucket, self.below(TEMPORARY), TEMPORARY_LIFE_S)

    def presign(self, path: str, seconds: int) -> str:
        """A download address that is valid for this long, with signature version 4, which every region accepts."""
        parameters = {"Bucket": self.bucket, "Key": self.key(path)}
        return str(self.signer.generate_presigned_url("get_object", Params=parameters, ExpiresIn=seconds))

    @cached_property
    def signer(self) -> Any:
        """A client for presigned addresses. Their signature is valid only for the bucket's own region."""
        with self.named("sign addresses of", ""):
            try:
                answer = self.client(QUICK).head_bucket(Bucket=self.bucket)
            except ClientError as error:  # the response names the region even if listing is forbidden
                answer = error.response
            region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
            return make_client(QUICK, signature_version="s3v4", region_name=region)

    def key(self, path: str) -> str:
        """Key of a file of the dataset."""
        return "/".join(part for part in (self.prefix, path) if part)

    def below(self, folder: str = "") -> str:
        """The key prefix of a folder, or of the dataset."""
        return f"{key}/" if (key := self.key(folder)) else ""

    def _put(self, path: str, data: bytes) -> Stored:
        found, in_parts = hash_of(data), len(data) > SINGLE_BYTES
        target, claim = self.described(path, found), self.key(f"{TEMPORARY}/claims/{path}")
        with self.named("write", path):
            for _ in range(PUT_ATTEMPTS):
                try:
                    if in_parts:
                        put_parts(self.client(), target, claim, data)
                    else:
                        self.client().put_object(**target, **checked(data, found), IfNoneMatch="*")
                    return Stored(path, len(data), found.hex())
                except ClientError as error:
                    if code_of(error) not in TAKEN and not (in_parts and code_of(error) in CONFLICTS):
                        raise
                if there := self._measure(path):
                    return there
        raise OutputError(
            f"{self.uri}/{path} was there and is gone, {PUT_ATTEMPTS} times",
            "make sure that no other job removes it",
        )

    def described(self, path: str, found: bytes) -> dict[str, Any]:
        """Bucket, key and metadata of an object."""
        return {"Bucket": self.bucket, "Key": self.key(path), "Metadata": {HASH: found.hex()}}

    def _head(self, path: str) -> dict[str, Any] | None:
        try:
            return dict(self.client().head_object(Bucket=self.bucket, Key=self.key(path)))
        except ClientError as error:
            if code_of(error) in MISSING:
                return None
            raise

    def _measure(self, path: str) -> Stored | None:
        """Size and hash of the existing file, from its content: metadata could be wrong."""
        try:
            data = self.read(path)
        except FileNotFoundError:
            return None
        return Stored(path, len(data), hash_of(data).hex(), created=False)

    def named(self, verb: str, path: str) -> AbstractContextManager[None]:
        """Context manager: raises errors of the store or the connection as OutputError with bucket, key and remedy."""
        return one_line(OutputError, verb, self.bucket, self.key(path))
