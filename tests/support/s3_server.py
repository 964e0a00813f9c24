"""A SeaweedFS server on loopback for tests, which can be stopped and started again with its data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from support.ports import free_port


@contextmanager
def made_bucket(name: str) -> Iterator[Any]:
    """A client, and a bucket that is removed with what is in it."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    yield client
    for item in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)


class S3Server:
    """`environment` holds the credentials and the endpoint, as the standard AWS variables."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        names = [f"{part}.port{kind}" for part in ("master", "filer", "volume") for kind in ("", ".grpc")]
        self.ports = {name: str(free_port()) for name in names}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, secret: str | None = None) -> None:
        """Start with the secret that clients have, or with another one. Returns when the server answers."""
        environment = self.environment | ({"AWS_SECRET_ACCESS_KEY": secret} if secret else {})
        credential = {
            "accessKey": environment["AWS_ACCESS_KEY_ID"],
            "secretKey": environment["AWS_SECRET_ACCESS_KEY"],
        }
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [{"name": "test", "credentials": [credential], "actions": actions}]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        options = {
            "dir": str(self.folder),
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.port": environment["AWS_ENDPOINT_URL"].rsplit(":", 1)[1],
            "s3.config": str(self.folder / "s3.json"),
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "webdav": "false",
            "admin.ui": "false",
            "master.telemetry": "false",
            **self.ports,
        }
        weed = Path(sys.executable).with_name("weed")
        command = [str(weed), "mini", *(f"-{name}={value}" for name, value in options.items())]
        with (self.folder / "log").open("w") as log:
            # with AWS variables about, it would take the clients' keys for those of an administrator
            environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        self._wait(environment)

    def stop(self) -> None:
        """Killed: asked politely, it may take more than 20 s."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def _wait(self, environment: dict[str, str]) -> None:
        assert self.process is not None
        client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=5),
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the S3 server ended: {self.log()}"
            try:
                with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                    client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="probe", Body=b"x")
                return
            except (BotoCoreError, ClientError):
                time.sleep(0.2)
        raise AssertionError(f"the S3 server did not answer: {self.log()}")

    def log(self) -> str:
        return (self.folder / "log").read_text()[-2000:]
